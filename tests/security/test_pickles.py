"""S3, S4: Parquet files that bring pickles along are left out before anything loads them, whoever reads the file."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import cluster, storage
from fcn_ray.config import CheckConfig, ChunkConfig
from fcn_ray.errors import ConfigError, SchemaError
from fcn_ray.tables.audit_plans import PlanRow
from fcn_ray.tables.audit_rows import Labelled
from fcn_ray.tables.audit_source import Sources
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.lookup import MaskIndex, stored_label_set, stream_labels
from fcn_ray.tables.pickles import check_environment, check_footer, open_parquet
from fcn_ray.tables.plan import extend_plan
from fcn_ray.training import frequencies, ingest, order
from fcn_ray.training.check import check
from tests.images.labelling import label
from tests.pictures import LABELS
from tests.security.canary import pickled
from tests.tables.making import png

VARIABLES = [
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_ARROW_EXTENSION_SERIALIZATION_CLOUDPICKLE",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
]


def _pickled_column(canary: Path) -> pa.Array:
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType  # registers it with pyarrow

    storage = pa.array([pickled(canary)], pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)


SHAPES: dict[str, Callable[[pa.Array], pa.Array]] = {
    "top": lambda array: array,
    "list": lambda array: pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array),
    "struct": lambda array: pa.StructArray.from_arrays([array], ["bytes"]),
    "dictionary": lambda array: pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), array),
    "map": lambda array: pa.MapArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["key"]), array),
    "nested": lambda array: pa.StructArray.from_arrays(
        [pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), pa.StructArray.from_arrays([array], ["a"]))], ["b"]
    ),
}


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without its extensions, as it lies in the file."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _plain(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    return kind


_STAND_IN = b"ARROW:schem*"
"""pyarrow keeps the real key to itself."""


def _write(path: Path, stored: bytes | None = None, **columns: pa.Array) -> Path:
    """A table of one row whose schema says what `columns` are, or what `stored` (ARROW:schema) says."""
    table = pa.table({"image": [png()], "mask": [png(0, "L")], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    text = base64.b64encode(table.schema.serialize().to_pybytes()) if stored is None else stored
    values = {
        name: array.cast(_plain(array.type)) if name in columns else array
        for name, array in zip(table.column_names, table.columns, strict=True)
    }
    plain = pa.table({name: array.combine_chunks() for name, array in values.items()})
    with pq.ParquetWriter(path, plain.schema, store_schema=False) as writer:
        writer.write_table(plain)
        writer.add_key_value_metadata({_STAND_IN: text})
    data = path.read_bytes()
    assert data.count(_STAND_IN) == 1
    path.write_bytes(data.replace(_STAND_IN, b"ARROW:schema"))
    return path


@pytest.fixture(params=SHAPES)
def harmful(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with a table that holds a pickle, and a good one; the canary must not be there in the end."""
    array = SHAPES[request.param](_pickled_column(tmp_path / "canary"))
    _write(tmp_path / "in" / "bad.parquet", object=array)
    _write(tmp_path / "in" / "good.parquet")
    yield tmp_path / "in"
    assert not (tmp_path / "canary").exists()


def test_the_canary_is_alive(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.parquet", object=_pickled_column(tmp_path / "canary"))
    pq.read_table(path)["object"].to_pylist()
    assert (tmp_path / "canary").exists()


def test_labelling_quarantines_the_table_and_does_the_others(harmful: Path, tmp_path: Path) -> None:
    found = label(harmful, tmp_path / "out")
    assert found.statuses == {("good.parquet", 0): "ok"}
    ((path, reason),) = [(table.path, table.reason) for table in found.listing.quarantined]
    assert (path, "pickled Python objects" in reason) == ("bad.parquet", True)


def test_training_and_its_check_refuse_the_table(harmful: Path) -> None:
    columns = ingest.Columns("image", "mask")
    with pytest.raises(SchemaError, match=r"bad.parquet: it has columns of pickled Python objects"):
        ingest.open_collection(str(harmful), columns)
    with pytest.raises(SchemaError, match=r"bad.parquet: it has columns of pickled Python objects"):
        check(CheckConfig(data=str(harmful)))
    piece = order.Piece(str(harmful / "bad.parquet"), "bad.parquet", 0, 0, 1, 1)  # changed since its footer was read
    with pytest.raises(SchemaError, match="pickled Python objects"):
        ingest.read_rows(order.plan_pass((piece,))[0], columns)
    with pytest.raises(SchemaError, match="pickled Python objects"):
        frequencies.count_piece(piece, columns, LABELS)


def test_an_evaluation_refuses_the_table_as_labels_and_as_masks(harmful: Path, tmp_path: Path) -> None:
    for read in (lambda: list(stream_labels(str(harmful), "mask")), lambda: stored_label_set(str(harmful))):
        with pytest.raises(SchemaError, match="pickled Python objects"):
            read()
    (tmp_path / "run=0" / "masks").mkdir(parents=True)
    (harmful / "bad.parquet").rename(tmp_path / "run=0" / "masks" / "m.parquet")
    with pytest.raises(SchemaError, match="pickled Python objects"):
        MaskIndex.open(str(tmp_path / "run=0"))


def test_a_pickle_as_the_path_of_a_mask_is_not_loaded(tmp_path: Path) -> None:
    _pickled_column(tmp_path / "canary")
    table = pa.table({"path": _pickled_column(tmp_path / "canary"), "row": [0], "plan": [1], "status": ["ok"]})
    (tmp_path / "run=0" / "masks").mkdir(parents=True)
    pq.write_table(table, tmp_path / "run=0" / "masks" / "m.parquet")
    with pytest.raises(SchemaError, match="pickled Python objects"):
        MaskIndex.open(str(tmp_path))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("hide", [lambda t: t[:8] + b"\n" + t[8:], lambda t: t[:8] + b"-_" + t[8:], lambda t: b"=" + t])
def test_a_schema_that_two_readers_could_read_differently_is_refused(tmp_path: Path, hide: Any) -> None:
    schema = pa.schema([("image", pa.binary()), ("mask", pa.binary())]).serialize().to_pybytes()
    stored = hide(base64.b64encode(schema))
    with pytest.raises(SchemaError, match=r"ARROW:schema\) is damaged"):
        check_footer(SimpleNamespace(metadata={b"ARROW:schema": stored}))
    _write(tmp_path / "in" / "bad.parquet", stored)  # pyarrow refuses it too, from version 26 on at least
    _write(tmp_path / "in" / "good.parquet")
    found = label(tmp_path / "in", tmp_path / "out")
    assert (found.statuses, found.listing.n_quarantined) == ({("good.parquet", 0): "ok"}, 1)


def test_old_pickled_types_of_pyarrow_are_refused(tmp_path: Path) -> None:
    field = pa.field("old", pa.binary(), metadata={"ARROW:extension:name": "arrow.py_extension_type"})
    schema = pa.schema([("image", pa.binary()), ("mask", pa.binary()), field]).serialize().to_pybytes()
    path = _write(tmp_path / "t.parquet", base64.b64encode(schema), old=pa.array([b"x"]))
    with path.open("rb") as file, pytest.raises(SchemaError, match="pickled Python objects"):
        open_parquet(file)


def _tensor_table(path: Path, canary: Path) -> Path:
    """A column of Ray's tensor type, whose shape is a pickle, as Ray 2.49 to 2.54 wrote it."""
    about = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": pickled(canary)}
    field = pa.field("tensor", pa.list_(pa.int64()), metadata=about)
    schema = pa.schema([("image", pa.binary()), ("mask", pa.binary()), field]).serialize().to_pybytes()
    return _write(path, base64.b64encode(schema), tensor=pa.array([[1, 2]]))


def test_pickled_shapes_of_tensors_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data  # noqa: F401  (registers its types)

    _tensor_table(tmp_path / "in" / "bad.parquet", tmp_path / "canary")
    _write(tmp_path / "in" / "good.parquet")
    found = label(tmp_path / "in", tmp_path / "out")
    assert (found.statuses, found.listing.n_quarantined) == ({("good.parquet", 0): "ok"}, 1)
    assert not (tmp_path / "canary").exists()


def _audit(path: Path) -> tuple[int, list[tuple[str, str]]]:
    """How many images the audit measures of a table that was labelled in this version, and what it says of them."""
    piece = PlanRow(path.name, storage.stat(str(path)).version, 0, 1, "parquet", "", 1)
    sources = Sources({"input": str(path), "identity": {}})
    problems = list(sources.check([piece], [Labelled(3, 4, None)]))
    return sources.compared, problems


def test_the_audit_does_not_open_the_table(harmful: Path) -> None:
    assert _audit(harmful / "bad.parquet") == (0, [])
    assert _audit(harmful / "good.parquet") == (1, [])


READERS: dict[str, Callable[[str], object]] = {
    "plan": lambda path: extend_plan(f"{path}-run", path, ChunkConfig(), Columns()),
    "train": lambda path: ingest.open_collection(path, ingest.Columns("image", "mask")),
    "evaluate": lambda path: list(stream_labels(path, "mask")),
    "audit": lambda path: _audit(Path(path, "bad.parquet")),
}


@pytest.mark.parametrize("reader", READERS)
def test_where_ray_may_load_pickles_no_table_is_even_opened(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.data._internal.tensor_extensions.arrow as ray_types

    _tensor_table(tmp_path / "in" / "bad.parquet", tmp_path / "canary")
    monkeypatch.setattr(ray_types, "_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", True)  # as Ray read it when it was imported
    monkeypatch.setenv(VARIABLES[1], "1")
    with pytest.raises(ConfigError, match=f"{VARIABLES[1]}='1'"):
        READERS[reader](str(tmp_path / "in"))
    assert not (tmp_path / "canary").exists()
    with suppress(Exception):
        pq.read_metadata(tmp_path / "in" / "bad.parquet")
    assert (tmp_path / "canary").exists(), "the file is harmless, and this test too"


# ------------------------------------------------------------------------------------------------------- the machine


@pytest.fixture
def never_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets as far as Ray fails with another error."""
    monkeypatch.setattr(cluster, "silence", None)


@pytest.mark.parametrize("value", ["1", "true", "YES", "on", "2"])
@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.usefixtures("never_connected")
def test_no_job_starts_where_ray_may_load_pickles(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}='{value}' in the environment.*unset it"):
        cluster.connect()


@pytest.mark.parametrize("name", VARIABLES)
def test_no_chunk_is_read_by_a_worker_that_may_load_pickles(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "in" / "good.parquet")
    with pytest.raises(ConfigError, match="on every node"):
        label(tmp_path / "in", tmp_path / "out", meanwhile=lambda: monkeypatch.setenv(name, "1"))
    assert not list((tmp_path / "out").rglob("masks/*")), "rows that say unreadable would stay for ever"


@pytest.mark.parametrize("value", ["", "0", "false", "False", "no", "off"])
def test_what_is_switched_off_is_no_danger(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    check_environment()


def test_the_floors_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    text = " ".join(project["dependencies"])
    for name, floor in cluster.FLOORS.items():
        pins = [pin for pin in text.split() if pin.partition("[")[0].partition(">")[0] == name]
        assert len(pins) == 1
        assert f">={floor[0]}.{floor[1]}" in pins[0] or f">={floor[0]}" == pins[0].partition(name)[2], pins


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("ray", "2.55.1"),
        ("ray", "2.9"),
        ("keras", "3.14.9"),
        ("keras", "2.15.0"),
        ("pillow", "12.9.0"),
        ("pyarrow", "14"),
    ],
)
@pytest.mark.usefixtures("never_connected")
def test_no_job_starts_with_packages_that_have_known_holes(
    name: str, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "version", lambda asked: old if asked == name else version(asked))
    with pytest.raises(ConfigError, match=rf"{name} {old} has known holes: install \d"):
        cluster.connect()


@pytest.mark.parametrize("new", ["3.16.0rc1", "4.0", "3.15.1+local", "10.0.0"])
def test_newer_packages_are_welcome(new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "version", lambda asked: new if asked == "keras" else version(asked))
    cluster.check_versions()
