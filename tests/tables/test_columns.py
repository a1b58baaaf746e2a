import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.errors import SchemaError
from fcn_ray.tables.columns import Columns, carried_columns, check_columns, find_image_column, read_table_schema

BYTES, TEXT, NUMBER = pa.binary(), pa.string(), pa.int64()
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("fields", "wanted", "found"),
    [
        ({"image": BYTES, "other": BYTES}, None, "image"),
        ({"image": TEXT, "other": BYTES}, None, "image"),
        ({"a": NUMBER, "photo": pa.large_binary()}, None, "photo"),
        ({"photo": STRUCT, "mask": STRUCT}, None, "photo"),
        ({"photo": pa.dictionary(pa.int8(), BYTES)}, None, "photo"),
        ({"photo": pa.struct([("bytes", pa.large_binary())]), "path": TEXT}, None, "photo"),
        ({"path": TEXT, "image_path": TEXT}, None, "path"),
        ({"image_path": pa.large_string(), "caption": TEXT}, None, "image_path"),
        ({"image": BYTES, "crop": BYTES}, "crop", "crop"),
        ({"image": BYTES, "file": TEXT}, "file", "file"),
        ({"image": BYTES, "mask": BYTES}, "mask", "mask"),
    ],
)
def test_the_image_column(fields: dict[str, pa.DataType], wanted: str | None, found: str) -> None:
    assert find_image_column(pa.schema(fields), wanted) == found


@pytest.mark.parametrize(
    ("fields", "wanted", "message"),
    [
        ({"a": BYTES, "b": STRUCT}, None, "'a', 'b' could all hold the images; name one"),
        ({"mask": BYTES}, None, "no column holds images, found mask: binary"),
        ({"image": NUMBER, "caption": TEXT}, None, "found image: int64, caption: string"),
        ({}, None, "found no columns"),
        ({"a": BYTES}, "photo", "image column 'photo' is missing, found 'a'"),
        ({"a": NUMBER}, "a", "image column 'a' has type int64; expected binary"),
        ({"a": pa.struct([("bytes", pa.binary()), ("width", NUMBER)])}, None, "no column holds images"),
    ],
)
def test_no_image_column(fields: dict[str, pa.DataType], wanted: str | None, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        find_image_column(pa.schema(fields), wanted)


FIELDS = pa.schema(
    {
        "image": BYTES,
        "path": TEXT,
        "label": pa.dictionary(pa.int8(), TEXT),
        "boxes": pa.list_(pa.struct([("x", NUMBER)])),
        "thumbs": pa.list_(BYTES),
        "mask": STRUCT,
        "key": pa.uuid(),
        "chunk_id": NUMBER,
        "input_path": NUMBER,
    }
)


@pytest.mark.parametrize(
    ("carry", "names"),
    [
        ("none", {}),
        # plain: no bytes at any depth, no extension types; names that results use get a prefix that is free
        (
            "plain",
            {
                "path": "input_input_path",
                "label": "label",
                "boxes": "boxes",
                "chunk_id": "input_chunk_id",
                "input_path": "input_path",
            },
        ),
        (("mask", "key", "image"), {"mask": "input_mask", "key": "key", "image": "input_image"}),
    ],
)
def test_carried_columns(carry, names: dict[str, str]) -> None:
    fields = carried_columns(FIELDS, Columns(carry=carry))
    assert {name: field.name for name, field in fields.items()} == names


def test_carried_types_are_plain() -> None:
    fields = carried_columns(FIELDS, Columns(carry=("label", "key")))
    assert [field.type for field in fields.values()] == [pa.string(), pa.binary(16)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(id="nothing"), "id column 'nothing' is missing"),
        (Columns(id="boxes"), "id column 'boxes' has type list<.*expected strings or integers"),
        (Columns(carry=("nothing",)), "carried column 'nothing' is missing"),
    ],
)
def test_columns_that_do_not_do(columns: Columns, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        check_columns(FIELDS, columns)


def _metadata(table: pa.Table) -> pq.FileMetaData:
    file = io.BytesIO()
    pq.write_table(table, file)
    return pq.read_metadata(file)


def test_columns_of_one_name_are_refused() -> None:
    with pytest.raises(SchemaError, match="same name: 'a'; rename"):
        read_table_schema(_metadata(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])))


class _Pickled(pa.ExtensionType):
    """What Ray stores Python objects as."""

    def __init__(self) -> None:
        super().__init__(pa.large_binary(), "ray.data.arrow_pickled_object")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "_Pickled":
        return cls()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda array: array,
        lambda array: pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array),
        lambda array: pa.StructArray.from_arrays([array], ["a"]),
    ],
    ids=["plain", "list", "struct"],
)
@pytest.mark.parametrize("registered", [False, True], ids=["without Ray", "with Ray"])
def test_pickled_objects_are_refused_at_any_depth(wrap, registered: bool) -> None:
    pickled = wrap(pa.ExtensionArray.from_storage(_Pickled(), pa.array([b"code"], pa.large_binary())))
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"], "object": pickled}), file)
    try:
        pa.register_extension_type(_Pickled()) if registered else None
    except pa.ArrowKeyError:  # another test has imported Ray, which registers it for good
        registered = False
    try:
        with pytest.raises(SchemaError, match="pickled Python objects"):
            read_table_schema(pq.read_metadata(file))
    finally:
        if registered:
            pa.unregister_extension_type("ray.data.arrow_pickled_object")
