import json

import pyarrow as pa
import pytest

from fcn_ray.labels import LabelSet
from fcn_ray.tables.schema import carried_name, is_image_struct, result_schema, trim_error

LABELS = LabelSet.from_names(["sky", "road"])
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_the_result_schema_is_the_contract() -> None:
    arrow = result_schema(LABELS, pa.schema([("caption", pa.string())]))
    assert [(field.name, str(field.type), field.nullable) for field in arrow] == [
        ("image_id", "string", False),
        ("path", "string", False),
        ("row", "int64", False),
        ("caption", "string", True),
        ("mask", "struct<bytes: binary, path: string>", True),
        ("height", "int32", True),
        ("width", "int32", True),
        ("class_pixels", "list<item: int64>", True),
        ("mean_confidence", "float", True),
        ("min_class_confidence", "float", True),
        ("status", "string", False),
        ("error", "string", True),
        ("flags", "list<item: string>", True),
        ("plan", "int32", False),
        ("model_digest", "string", False),
        ("run_id", "string", False),
    ]


def test_hugging_face_finds_its_features() -> None:
    carried = pa.schema(
        [("input_image", STRUCT), ("half", pa.float16()), ("boxes", pa.list_(pa.struct([("x", "f8")])))]
    )
    features = json.loads(result_schema(LABELS, carried).metadata[b"huggingface"])["info"]["features"]
    assert features["mask"] == features["input_image"] == {"_type": "Image"}
    assert features["half"] == {"dtype": "float16", "_type": "Value"}
    assert features["boxes"] == {"feature": {"x": {"dtype": "float64", "_type": "Value"}}, "_type": "List"}
    assert features["class_pixels"] == {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}


@pytest.mark.parametrize(
    ("kind", "feature"),
    [
        (pa.date32(), {"dtype": "date32", "_type": "Value"}),
        (pa.date64(), {"dtype": "date64", "_type": "Value"}),
        (pa.list_(pa.int8(), 2), {"feature": {"dtype": "int8", "_type": "Value"}, "length": 2, "_type": "List"}),
        (
            pa.list_(pa.dictionary(pa.int8(), pa.string())),
            {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        ),
    ],
)
def test_carried_types_have_the_names_that_datasets_knows(kind: pa.DataType, feature: object) -> None:
    found = json.loads(result_schema(LABELS, pa.schema([pa.field("c", kind)])).metadata[b"huggingface"])
    assert found["info"]["features"]["c"] == feature


def test_where_datasets_has_no_name_for_a_type_it_finds_out_by_itself() -> None:
    metadata = result_schema(LABELS, pa.schema([("c", pa.list_(pa.map_(pa.string(), pa.int8())))])).metadata
    assert b"huggingface" not in metadata


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (STRUCT, True),
        (pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]), True),
        (pa.struct([("bytes", pa.binary())]), True),
        (pa.struct([("bytes", pa.binary()), ("path", pa.dictionary(pa.int32(), pa.string()))]), True),
        (pa.struct([("bytes", pa.binary()), ("path", pa.null())]), True),
        (pa.struct([("bytes", pa.binary()), ("path", pa.binary())]), False),
        (pa.struct([("bytes", pa.binary()), ("path", pa.int64())]), False),
        (pa.struct([("bytes", pa.string())]), False),
        (pa.struct([("bytes", pa.binary()), ("size", pa.int64())]), False),
        (pa.binary(), False),
    ],
)
def test_image_structs(kind: pa.DataType, expected: bool) -> None:
    assert is_image_struct(kind) is expected


def test_carried_columns_keep_clear_of_ours() -> None:
    assert [carried_name(name) for name in ("caption", "mask", "image", "chunk_row")] == [
        *("caption", "input_mask", "input_image", "input_chunk_row")
    ]


def test_errors_fit_on_a_line() -> None:
    assert trim_error("it's\nbad\x1b[31m ü") == r"it's\nbad\x1b[31m ü"
    assert trim_error("x" * 501) == "x" * 499 + "…"
    assert trim_error("x" * 500) == "x" * 500
