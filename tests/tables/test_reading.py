import io
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_ray import storage
from fcn_ray.storage import local
from fcn_ray.tables import cells, cursor
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.contents import read_contents
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.reading import label_chunk, read_rows
from fcn_ray.tables.sources import Piece, Source
from tests.tables.archives import tar, write_tar
from tests.tables.making import write_images, write_table


def _piece(path: Path, first: int = 0, rows: int = 1) -> Piece:
    kind = {".parquet": "parquet", ".tar": "tar"}.get(path.suffix, "image")
    entry = storage.stat(str(path))
    return Piece(path.name, entry.version, kind, first, rows, entry.size)


def _read(path: Path, first: int = 0, rows: int = 1, **columns: Any) -> list[Mapping[str, Any]]:
    rows_read: list[Mapping[str, Any]] = read_rows(
        understand_input(str(path.parent)), [_piece(path, first, rows)], Columns(**columns)
    ).to_pylist()
    return rows_read


def _status(row: Mapping[str, Any]) -> tuple[bytes | None, str | None]:
    return row["image"], row["source_error"]


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_slice_of_a_table_is_those_rows(tmp_path: Path, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 90))
    first = data.draw(st.integers(0, count - 1))
    rows = data.draw(st.integers(1, count - first))
    path = write_table(tmp_path / "t.parquet", count, group=data.draw(st.integers(1, 90)), name=list(range(count)))
    read = _read(path, first, rows)
    assert [row["name"] for row in read] == list(range(first, first + rows))
    assert [row["image"] for row in read] == [b"image %d" % row for row in range(first, first + rows)]
    assert [row["image_id"] for row in read] == [f"t.parquet#{row}" for row in range(first, first + rows)]
    assert {(row["path"], row["source_error"]) for row in read} == {("t.parquet", None)}
    assert [row["row"] for row in read] == list(range(first, first + rows))


def test_a_chunk_of_files_and_its_labels(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    table = label_chunk(
        read_rows(understand_input(str(tmp_path)), [_piece(tmp_path / n) for n in ("a.png", "b.png")], Columns()),
        "c",
        7,
    )
    assert table.schema.field("image").type == pa.large_binary()
    assert table.select(["chunk_id", "chunk_row", "chunk_rows", "plan", "image_id", "path", "row"]).to_pylist() == [
        {"chunk_id": "c", "chunk_row": i, "chunk_rows": 2, "plan": 7, "image_id": name, "path": name, "row": 0}
        for i, name in enumerate(["a.png", "b.png"])
    ]
    assert table["image"].to_pylist() == [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([b"one", None, b""], pa.binary()),
        pa.array([b"one", None, b""], pa.large_binary()),
        pa.array([b"one", None, b""]).dictionary_encode(),
        pa.array([{"bytes": b"one", "path": "x"}, None, {"bytes": b"", "path": None}], STRUCT),
        pa.array([{"bytes": b"one"}, {"bytes": None}, {"bytes": b""}], pa.struct([("bytes", pa.large_binary())])),
    ],
    ids=lambda cells: str(cells.type),
)
def test_every_form_of_bytes(tmp_path: Path, cells: pa.Array) -> None:
    path = write_table(tmp_path / "t.parquet", 3, image=cells)
    assert [_status(row) for row in _read(path, 0, 3)] == [(b"one", None), (None, None), (b"", None)]


@pytest.mark.parametrize("as_struct", [False, True])
def test_paths_are_read_from_the_folder_of_the_table(tmp_path: Path, as_struct: bool) -> None:
    (tmp_path / "near.png").write_bytes(b"near")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "far.png").write_bytes(b"far")
    os.mkfifo(tmp_path / "pipe")
    paths = ["sub/far.png", f"{tmp_path}/near.png", f"file://{tmp_path}/near.png", None, "", "no", "http://b/k", "pipe"]
    cells = [{"bytes": None, "path": path} for path in paths] if as_struct else paths
    path = write_table(tmp_path / "t.parquet", 8, image=pa.array(cells, STRUCT if as_struct else pa.string()))
    read = _read(path, 0, 8)
    assert [_status(row) for row in read[:5]] == [
        *[(b"far", None), (b"near", None), (b"near", None)],
        *[(None, None), (None, None)],
    ]
    assert [_status(row) for row in read[5:]] == [(None, "unreadable")] * 3
    assert "No such file" in read[5]["source_message"]
    assert "http:// is not a place" in read[6]["source_message"]
    assert "not a regular file" in read[7]["source_message"]


def test_the_version_of_a_file_that_a_path_names_goes_along(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    path = write_table(tmp_path / "t.parquet", 4, group=3, image=["a.png", "gone.png", None, "b.png"])
    versions = [storage.stat(f"{tmp_path}/{name}").version for name in ("a.png", "b.png")]
    assert [row["image_version"] for row in _read(path, 0, 4)] == [versions[0], None, None, versions[1]]
    assert _read(path, 1, 2)[0]["image_version"] is None, "all chunks of a table have the column"
    assert "image_version" not in _read(path, 0, 4, carry="none")[0]
    taken = write_table(tmp_path / "u.parquet", 1, image=["a.png"], image_version=["mine"])
    assert _read(taken, 0, 1)[0]["image_version"] == "mine"


def test_images_that_are_in_their_table_have_no_version(tmp_path: Path) -> None:
    cells = pa.array([{"bytes": b"one", "path": "x"}, {"bytes": None, "path": None}], STRUCT)
    for image in ([b"one", None], cells):
        path = write_table(tmp_path / "t.parquet", 2, image=image)
        assert "image_version" not in _read(path, 0, 2)[0]


@pytest.mark.parametrize("as_paths", [False, True])
def test_files_are_read_several_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_paths: bool) -> None:
    """Each waits until eight are being read."""
    names = [f"{number}.png" for number in range(16)]
    write_images(tmp_path, *names)
    barrier, fetch = threading.Barrier(8), local.fetch

    def fetch_together(uri: str, limit: int) -> Any:
        barrier.wait(timeout=10)
        return fetch(uri, limit)

    monkeypatch.setattr(local, "fetch", fetch_together)
    if as_paths:
        rows = _read(write_table(tmp_path / "t.parquet", 16, group=16, image=names), 0, 16)
    else:
        rows = read_rows(
            understand_input(str(tmp_path)), [_piece(tmp_path / name) for name in names], Columns()
        ).to_pylist()
    assert [row["image"] for row in rows] == [(tmp_path / name).read_bytes() for name in names]


@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_slice_of_a_tar_is_those_images(tmp_path: Path, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    path = write_tar(tmp_path / "t.tar", count, data.draw(st.sampled_from(["gnu", "pax", "ustar"])))
    first = data.draw(st.integers(0, count - 1))
    rows = data.draw(st.integers(1, count - first))
    at = data.draw(st.integers(0, first))
    offset = [group.offset for group in read_contents(str(path), Source("t.tar", "tar", 9, "1"), Columns())][at]
    piece = replace(_piece(path, first, rows), offset=offset, offset_row=at)
    read = read_rows(understand_input(str(tmp_path)), [piece], Columns()).to_pylist()
    assert [row["image"] for row in read] == [b"tar image %d" % row for row in range(first, first + rows)]
    assert [(row["image_id"], row["path"], row["row"], row["key"], row["source_error"]) for row in read] == [
        (f"t.tar#{row}", "t.tar", row, f"shard/{row:04}", None) for row in range(first, first + rows)
    ]


def test_columns_of_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", 2)
    assert "key" not in _read(path, 0, 2, carry="none")[0]
    assert "key" not in _read(path, 0, 2, carry=("name",))[0]
    assert _read(path, 0, 2, carry=("name", "key"))[0]["key"] == "shard/0000"
    assert [row["image_id"] for row in _read(path, 0, 2, id="key")] == ["shard/0000", "shard/0001"]
    assert [row["image_id"] for row in _read(path, 0, 2, id="name")] == ["t.tar#0", "t.tar#1"]


@pytest.mark.parametrize("fate", ["gone", "changed", "cut", "header"])
def test_a_tar_that_cannot_be_read_gives_its_rows_all_the_same(tmp_path: Path, fate: str) -> None:
    path = write_tar(tmp_path / "t.tar", 5)
    piece = replace(_piece(path, 1, 3), offset=4096, offset_row=1)
    if fate == "gone":
        path.unlink()
    elif fate == "changed":
        write_tar(path, 6)
    else:
        status, data = path.stat(), bytearray(path.read_bytes())
        data[7168 + 20] ^= 1  # the header of the third image
        path.write_bytes(data[:7200] if fate == "cut" else data)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        if fate == "cut":
            piece = replace(piece, version=storage.stat(str(path)).version)
    read = read_rows(understand_input(str(tmp_path)), [piece], Columns()).to_pylist()
    good = [] if fate in {"gone", "changed"} else [b"tar image 1"]
    problem = "changed" if fate == "changed" else "unreadable"
    assert [_status(row) for row in read] == [(data, None) for data in good] + [(None, problem)] * (3 - len(good))
    assert [(row["row"], row["image_id"]) for row in read] == [(row, f"t.tar#{row}") for row in (1, 2, 3)]
    assert "key" in read[0]


def test_an_image_of_a_tar_that_is_too_big_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.tar").write_bytes(tar([("a.jpg", bytes(2000)), ("b.jpg", b"small"), ("c.jpg", b"")]))
    monkeypatch.setattr(cells, "MAX_FILE_BYTES", 1000)
    read = _read(tmp_path / "t.tar", 0, 4)
    assert [_status(row) for row in read] == [(None, "too_big"), (b"small", None), (b"", None), (None, "unreadable")]
    assert "expected 4 images from row 0 on, found 3" in read[3]["source_message"]


def test_files_that_are_gone_changed_or_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "gone.png", "changed.png", "huge.png", "good.png")
    (tmp_path / "huge.png").write_bytes(bytes(2000))
    pieces = [_piece(tmp_path / name) for name in ("gone.png", "changed.png", "huge.png", "good.png")]
    (tmp_path / "gone.png").unlink()
    (tmp_path / "changed.png").write_bytes(b"other")
    monkeypatch.setattr(cells, "MAX_FILE_BYTES", 1000)
    read = read_rows(understand_input(str(tmp_path)), pieces, Columns()).to_pylist()
    assert [row["source_error"] for row in read] == ["unreadable", "changed", "too_big", None]
    assert [row["image"] is None for row in read] == [True, True, True, False]
    assert "the next run takes the new version" in read[1]["source_message"]
    assert "2000 bytes, more than 1000" in read[2]["source_message"]


def test_a_file_that_changes_while_it_is_read_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "a.png")
    piece = _piece(tmp_path / "a.png")

    class Changing(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            (tmp_path / "a.png").write_bytes(b"other")
            return b"what was planned"

    monkeypatch.setattr(local, "open_file", Changing)
    (row,) = read_rows(understand_input(str(tmp_path)), [piece], Columns()).to_pylist()
    assert _status(row) == (None, "changed")


@pytest.mark.parametrize("fate", ["gone", "changed", "cut"])
def test_a_table_that_cannot_be_read_gives_its_rows_all_the_same(tmp_path: Path, fate: str) -> None:
    path = write_table(tmp_path / "t.parquet", 9)
    piece = _piece(path, 2, 5)
    if fate == "gone":
        path.unlink()
    elif fate == "changed":
        write_table(path, 3)
    else:
        status = path.stat()
        path.write_bytes(path.read_bytes()[:-9] + bytes(9))
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    read = read_rows(understand_input(str(tmp_path)), [piece], Columns()).to_pylist()
    expected = "changed" if fate == "changed" else "unreadable"
    assert [(row["row"], *_status(row)) for row in read] == [(row, None, expected) for row in range(2, 7)]


def test_a_table_whose_id_column_is_gone_is_changed(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", 3, key=["x", "y", "z"])
    piece = _piece(path, 0, 2)
    write_table(path, 3)
    read = read_rows(understand_input(str(tmp_path)), [piece], Columns(id="key")).to_pylist()
    assert [_status(row) for row in read] == [(None, "changed")] * 2


def test_a_flipped_bit_loses_its_row_group_only(tmp_path: Path) -> None:
    images = [b"picture-%02d" % row * 20 for row in range(6)]
    table = pa.table({"image": images, "name": list(range(6))})
    pq.write_table(
        table,
        tmp_path / "t.parquet",
        row_group_size=2,
        write_page_checksum=True,
        write_statistics=False,  # they repeat images in page headers, which have no checksum
        compression="none",
        use_dictionary=False,
    )
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[data.index(b"picture-03") + 5] ^= 1
    (tmp_path / "t.parquet").write_bytes(data)
    read = _read(tmp_path / "t.parquet", 0, 6)
    assert [row["source_error"] for row in read] == [None, None, "unreadable", "unreadable", None, None]
    assert [row["name"] for row in read] == [0, 1, None, None, 4, 5]
    lost = _read(tmp_path / "t.parquet", 2, 2)
    assert lost[0].keys() == read[0].keys(), "carried columns are there even when every row is lost"


@pytest.mark.parametrize(
    "ids", [pa.array(["x", None, "x"]), pa.array([7, None, 7]), pa.array(["x", None, "x"]).dictionary_encode()]
)
def test_a_named_id_column(tmp_path: Path, ids: pa.Array) -> None:
    path = write_table(tmp_path / "t.parquet", 3, key=ids)
    named = str(ids.to_pylist()[0])
    assert [row["image_id"] for row in _read(path, 0, 3, id="key")] == [named, "t.parquet#1", named]


def test_text_that_is_not_utf8_is_mended(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xe9", b"ok", None]).view(pa.string())
    path = write_table(tmp_path / "t.parquet", 3, key=broken, name=broken)
    read = _read(path, 0, 3, id="key")
    assert [row["name"] for row in read] == ["caf�", "ok", None]
    assert [row["image_id"] for row in read] == ["caf�", "ok", "t.parquet#2"]


@pytest.mark.parametrize(("whole", "all_at_once"), [(1 << 20, False), (32 << 20, True)])
def test_of_a_large_row_group_only_the_part_that_is_wanted_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int, all_at_once: bool
) -> None:
    images = [os.urandom(4_000) for _ in range(3000)]  # a page holds 1024 rows
    path = write_table(tmp_path / "t.parquet", 3000, group=3000, image=images)
    piece, opened = _piece(path, 0, 2), []

    class Counted(io.FileIO):
        loaded = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            self.loaded += len(data)
            return data

    monkeypatch.setattr(cursor, "_WHOLE_BYTES", whole)
    monkeypatch.setattr(storage, "open_file", lambda uri: opened.append(Counted(uri)) or opened[-1])
    read = read_rows(understand_input(str(tmp_path)), [piece], Columns()).to_pylist()
    assert [row["image"] for row in read] == images[:2]
    assert (sum(file.loaded for file in opened) > 11_000_000) == all_at_once


def test_more_than_pyarrow_takes_in_one_batch_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A struct column of 2 GiB in one batch, which is too much for a test, raises this."""
    path = write_table(tmp_path / "t.parquet", 9, group=9)
    iter_batches = pq.ParquetFile.iter_batches

    def refuse_many(self: pq.ParquetFile, rows: int, **options: Any) -> Any:
        if rows > 1:
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return iter_batches(self, rows, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", refuse_many)
    assert [_status(row) for row in _read(path, 2, 5)] == [(b"image %d" % row, None) for row in range(2, 7)]


def test_the_footer_is_read_once_for_a_piece_of_many_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as long as they are many: read for each, the work would be their square."""
    path = write_table(tmp_path / "t.parquet", 50, group=1)
    read, footers = pq.read_metadata, []
    monkeypatch.setattr(pq, "read_metadata", lambda *given: footers.append(given) or read(*given))
    assert [_status(row)[0] for row in _read(path, 5, 40)] == [b"image %d" % row for row in range(5, 45)]
    assert len(footers) == 1


def test_chunks_of_one_row_group_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "t.parquet", 300, group=300, name=list(range(300)))
    made = []
    open_cursor = cursor._Cursor
    monkeypatch.setattr(cursor, "_Cursor", lambda *key: made.append(key) or open_cursor(*key))
    for first in (0, 40, 100, 250):  # another process did the chunks between
        assert [row["name"] for row in _read(path, first, 40)] == list(range(first, first + 40))
    assert len(made) == 1
    assert _read(path, 10, 1)[0]["name"] == 10, "backwards is a new start"
    write_table(path, 300, group=300, name=list(range(1000, 1300)))
    assert _read(path, 20, 1)[0]["name"] == 1020, "and so is a new version"
    assert len(made) == 3
    assert len(cursor._idle) == 1
