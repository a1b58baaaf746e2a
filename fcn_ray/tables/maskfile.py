"""One chunk's result rows as a Parquet file: is it whole, and how is it stored (DESIGN 5, the result row)."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcn_ray.errors import IncompleteError
from fcn_ray.tables import schema, seal
from fcn_ray.tables.runs import Run

MAX_GROUP_BYTES = 100_000_000
"""Largest row group: what a reader must hold at a time."""

RUN_KEY, CHUNK_KEY, ROWS_KEY = b"fcn_ray.run", b"fcn_ray.chunk", b"fcn_ray.rows"
"""Keys of the file's metadata: run id, chunk id, number of rows."""

_MASK_BYTES = f"{schema.MASK}.bytes"


def check_whole(table: pa.Table) -> str:
    """The chunk's id, when the table is rows 0..n-1 of it, each once, in order."""
    ids = pc.unique(table[schema.CHUNK_ID]).to_pylist()
    sizes = pc.unique(table[schema.CHUNK_ROWS]).to_pylist()
    rows = table[schema.CHUNK_ROW].to_pylist()
    if len(ids) != 1 or len(sizes) != 1 or rows != list(range(sizes[0])):
        raise IncompleteError(
            f"a block is not one whole chunk: chunks {ids} of {sizes} rows, found {len(rows)} rows {_spans(rows)}; "
            "nothing was written for it; run the same command again"
        )
    return str(ids[0])


def _spans(rows: list[int]) -> str:
    text = ", ".join(map(str, rows[:8]))
    return f"[{text}, ...]" if len(rows) > 8 else f"[{text}]"


def check_rows(run: Run, table: pa.Table, chunk_id: str) -> None:
    """Every row has a known status, and a mask if it is ok, else an error; all are of this run."""
    ok = pc.equal(table[schema.STATUS], schema.OK)
    checks = {
        "an unknown status": pc.is_in(table[schema.STATUS], pa.array([schema.OK, *schema.BAD_STATUSES])),
        "a mask but are not ok, or are ok without one": pc.equal(ok, pc.is_valid(table[schema.MASK])),
        "an error but are ok, or are not ok without one": pc.not_equal(ok, pc.is_valid(table[schema.ERROR])),
        "another run's id": pc.equal(table[schema.RUN_ID], run.run_id),
    }
    for fault, passed in checks.items():
        wrong = len(passed) - (pc.sum(passed).as_py() or 0)
        if wrong:
            raise IncompleteError(f"chunk {chunk_id}: {wrong} of {len(passed)} rows have {fault}; nothing was written")


def encode(run: Run, chunk_id: str, table: pa.Table) -> bytes:
    """The chunk as a Parquet file."""
    ours = schema.RESERVED | schema.WORKING
    carried = pa.schema([table.schema.field(name) for name in table.column_names if name not in ours])
    arrow = schema.result_schema(run.labels, carried)
    marks = {RUN_KEY: run.run_id, CHUNK_KEY: chunk_id, ROWS_KEY: str(table.num_rows)}
    table = table.select(arrow.names).cast(arrow).replace_schema_metadata({**arrow.metadata, **marks})
    # Masks are PNG: to compress or index them again costs time and gains nothing.
    leaves = [leaf for field in arrow for leaf in _leaves(field) if leaf != _MASK_BYTES]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression={_MASK_BYTES: "none"} | dict.fromkeys(leaves, "zstd"),
        use_dictionary=leaves,
        write_statistics=leaves,
        write_page_checksum=True,
        write_page_index=True,
    ) as writer:
        for group in _row_groups(table):
            writer.write_table(group, row_group_size=max(1, group.num_rows))
        writer.add_key_value_metadata({seal.KEY: seal.BLANK})
    return seal.seal(sink)


def _row_groups(table: pa.Table) -> Iterator[pa.Table]:
    """Slices of at most MAX_GROUP_BYTES, or of one row."""
    first = total = 0
    for row in range(table.num_rows):
        size = table.slice(row, 1).nbytes
        if row > first and total + size > MAX_GROUP_BYTES:
            yield table.slice(first, row - first)
            first, total = row, 0
        total += size
    yield table.slice(first)


def _leaves(field: pa.Field, path: str = "") -> Iterator[str]:
    """Names of a field's columns as Parquet spells them."""
    path = f"{path}.{field.name}" if path else field.name
    kind = field.type
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(child, path)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(pa.field("element", kind.value_type), f"{path}.list")
    else:
        yield path
