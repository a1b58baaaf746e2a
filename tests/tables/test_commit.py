import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.errors import AuditError, ForeignOutputError, IncompleteError, OutOfReachError, StorageError
from fcn_ray.labels import METADATA_KEY, LabelSet
from fcn_ray.tables import maskfile, schema
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk, is_committed, read_receipt
from fcn_ray.tables.plan import pending_chunks
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run
from tests.tables.making import png, result_rows, start_run, write_images, write_table

Chunk = tuple[Run, ChunkRef, pa.Table]


@pytest.fixture
def chunk(tmp_path: Path) -> Chunk:
    """A run, its only chunk of three rows, and the chunk's result."""
    write_table(tmp_path / "in" / "t.parquet", 3, name=["a", "b", "c"])
    run, log = start_run(tmp_path)
    (ref,) = pending_chunks(log)
    return run, ref, result_rows(run, ref, Columns())


def _stored(run: Run, ref: ChunkRef) -> Path:
    return Path(run.uri, "masks", f"{ref.chunk_id}.parquet")


def test_a_chunk_is_stored_as_the_contract_says(chunk: Chunk) -> None:
    run, ref, table = chunk
    receipt = commit_chunk(run, table)
    data = _stored(run, ref).read_bytes()
    assert (receipt.chunk_id, receipt.n_rows, receipt.written) == (ref.chunk_id, 3, True)
    assert (receipt.size, receipt.sha256, receipt.statuses) == (len(data), storage.digest(data), {"ok": 3})
    parquet = pq.ParquetFile(io.BytesIO(data))
    carried = pa.schema([("name", pa.string())])
    assert parquet.schema_arrow.equals(schema.result_schema(run.labels, carried))
    metadata = parquet.metadata.metadata
    assert LabelSet.from_json(metadata[METADATA_KEY.encode()].decode()) == run.labels
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["mask"] == {"_type": "Image"}
    assert {key: metadata[key.encode()].decode() for key in ("fcn_ray.run", "fcn_ray.chunk", "fcn_ray.rows")} == {
        "fcn_ray.run": run.run_id,
        "fcn_ray.chunk": ref.chunk_id,
        "fcn_ray.rows": "3",
    }
    row = parquet.read().to_pylist()[1]
    assert (row["image_id"], row["path"], row["row"], row["name"]) == ("t.parquet#1", "t.parquet", 1, "b")
    assert row["mask"] == {"bytes": png(1, "L"), "path": None}


def test_masks_are_stored_as_they_are_and_the_rest_is_packed(chunk: Chunk) -> None:
    run, ref, table = chunk
    commit_chunk(run, table)
    group = pq.read_metadata(_stored(run, ref)).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    mask = columns.pop("mask.bytes")
    assert (mask.compression, mask.statistics, mask.has_dictionary_page) == ("UNCOMPRESSED", None, False)
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert columns["status"].statistics is not None


def test_pages_have_checksums(chunk: Chunk) -> None:
    run, ref, table = chunk
    commit_chunk(run, table)
    data = bytearray(_stored(run, ref).read_bytes())
    data[data.index(png(1, "L")) + 50] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()


def test_row_groups_are_limited(chunk: Chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    run, ref, table = chunk
    monkeypatch.setattr(maskfile, "MAX_GROUP_BYTES", 2 * table.slice(0, 1).nbytes)
    commit_chunk(run, table)
    footer = pq.read_metadata(_stored(run, ref))
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [2, 1]


def test_bad_images_are_rows_with_an_error(chunk: Chunk) -> None:
    run, ref, _ = chunk
    good = {"bytes": png(1, "L"), "path": None}
    changes = {"mask": [good, None, None], "status": ["ok", "corrupt", "null"], "error": [None, "bad", "no cell"]}
    receipt = commit_chunk(run, result_rows(run, ref, Columns(), **changes))
    assert receipt.statuses == {"corrupt": 1, "null": 1, "ok": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.slice(0, 2), r"of \[3\] rows, found 2 rows \[0, 1\]"),
        (lambda t: t.slice(1), r"found 2 rows \[1, 2\]"),
        (lambda t: t.slice(0, 0), r"chunks \[\] of \[\] rows, found 0 rows"),
        (lambda t: pa.concat_tables([t, t.slice(2)]), r"found 4 rows \[0, 1, 2, 2\]"),
        (lambda t: t.take([0, 2, 1]), r"found 3 rows \[0, 2, 1\]"),
        (lambda t: t.take([0, 0, 1]), r"found 3 rows \[0, 0, 1\]"),
        (lambda t: pa.concat_tables([t.slice(0, 2), _with(t, chunk_id="other").slice(2)]), r"chunks \['.*', 'other'\]"),
        (lambda t: pa.concat_tables([t.slice(0, 2), _with(t, chunk_rows=4).slice(2)]), r"of \[3, 4\] rows"),
    ],
    ids=["tail lost", "head lost", "all lost", "duplicate", "reordered", "replaced", "mixed", "of two sizes"],
)
def test_a_chunk_that_is_not_whole_is_refused(chunk: Chunk, damage, message: str) -> None:
    run, ref, table = chunk
    with pytest.raises(IncompleteError, match=message):
        commit_chunk(run, damage(table))
    assert not _stored(run, ref).exists()


def _with(table: pa.Table, **cells: object) -> pa.Table:
    for name, cell in cells.items():
        table = table.set_column(table.column_names.index(name), name, pa.array([cell] * table.num_rows))
    return table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": ["ok", "ok", "fine"]}, "1 of 3 rows have an unknown status"),
        ({"mask": [None] * 3}, "3 of 3 rows have a mask but are not ok, or are ok without one"),
        ({"status": ["ok", "corrupt", "ok"], "error": [None, "x", None]}, "1 of 3 rows have a mask but are not ok"),
        ({"error": [None, None, "but"]}, "1 of 3 rows have an error but are ok"),
        ({"status": ["crash"] * 3, "mask": [None] * 3}, "3 of 3 rows have an error but are ok, or are not ok without"),
        ({"run_id": ["other"] * 3}, "3 of 3 rows have another run's id"),
    ],
)
def test_rows_that_break_the_contract_are_refused(chunk: Chunk, changes, message: str) -> None:
    run, ref, _ = chunk
    with pytest.raises(IncompleteError, match=message):
        commit_chunk(run, result_rows(run, ref, Columns(), **changes))
    assert not _stored(run, ref).exists()


def test_the_first_writer_wins(chunk: Chunk) -> None:
    run, ref, table = chunk
    other = result_rows(run, ref, Columns(), mean_confidence=[0.1, 0.2, 0.3])
    with ThreadPoolExecutor(4) as pool:
        receipts = list(pool.map(lambda rows: commit_chunk(run, rows), [table, other, table, other]))
    assert sum(receipt.written for receipt in receipts) == 1
    data = _stored(run, ref).read_bytes()
    assert {(receipt.size, receipt.sha256) for receipt in receipts} == {(len(data), storage.digest(data))}
    assert read_receipt(run, ref.chunk_id, ref.n_rows) == next(replace(r, written=False) for r in receipts)


def test_a_chunk_with_other_rows_than_planned_has_no_receipt(chunk: Chunk) -> None:
    run, ref, table = chunk
    commit_chunk(run, table)
    with pytest.raises(AuditError, match="holds 3 rows, expected 4"):
        read_receipt(run, ref.chunk_id, 4)


def test_what_may_not_be_asked_is_not_taken_for_committed(chunk: Chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's role may lack the right to look: the put decides. A store that is silent is another matter."""
    run, ref, table = chunk
    assert not is_committed(run.uri, ref.chunk_id)
    commit_chunk(run, table)
    assert is_committed(run.uri, ref.chunk_id)

    def refuse(error: Exception) -> None:
        def is_file(_: str) -> bool:
            raise error

        monkeypatch.setattr(storage, "is_file", is_file)

    for error in (StorageError("403"), OSError("stale file handle")):
        refuse(error)
        assert not is_committed(run.uri, ref.chunk_id)
    refuse(OutOfReachError("silence"))
    with pytest.raises(OutOfReachError):
        is_committed(run.uri, ref.chunk_id)


def test_something_else_in_its_place_is_no_success(chunk: Chunk, tmp_path: Path) -> None:
    run, ref, table = chunk
    commit_chunk(run, table)
    whole = _stored(run, ref).read_bytes()

    def put(data: bytes) -> None:
        _stored(run, ref).unlink()
        _stored(run, ref).write_bytes(data)

    put(whole[:-3])
    with pytest.raises(AuditError, match=r"parquet is damaged"):
        commit_chunk(run, table)
    put(maskfile.encode(replace(run, run_id="0" * 16), ref.chunk_id, table))
    with pytest.raises(ForeignOutputError, match=r"is of run 0{16}, expected"):
        commit_chunk(run, table)
    put(maskfile.encode(run, "other", table))
    with pytest.raises(AuditError, match="is not the whole chunk"):
        commit_chunk(run, table)
    file = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(whole)).slice(0, 2), file)
    put(file.getvalue())
    with pytest.raises(AuditError, match="is not the whole chunk"):
        commit_chunk(run, table)
    put(maskfile.encode(run, ref.chunk_id, table.slice(0, 2)))
    with pytest.raises(AuditError, match="holds 2 rows, expected 3"):
        commit_chunk(run, table)


def test_lost_inputs_have_rows_too(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    run, log = start_run(tmp_path)
    (tmp_path / "in" / "b.png").unlink()
    (ref,) = pending_chunks(log)
    table = result_rows(run, ref, Columns())
    assert table["path"].to_pylist() == ["a.png", "b.png"]
    assert commit_chunk(run, table).n_rows == 2
