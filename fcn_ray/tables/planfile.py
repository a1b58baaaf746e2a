"""One plan as a Parquet file: a row for each piece, sorted by path, the rows of a chunk together in one row group."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, repeat
from operator import attrgetter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.errors import AuditError
from fcn_ray.tables import seal
from fcn_ray.tables.chunks import Chunk, chunk_id
from fcn_ray.tables.sources import Piece

PLAN_SCHEMA = pa.schema(
    [
        pa.field("chunk_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("n_rows", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("offset_row", pa.int64(), nullable=False),
    ]
)
_BEFORE_TARS = pa.schema(list(PLAN_SCHEMA)[:-2])
"""Plans of older versions have no offsets, which all were 0."""

_CHUNKS, _ROWS, _KIND = b"fcn_ray.chunks", b"fcn_ray.rows", b"fcn_ray.kind"
_RETRY, _RETURN = b"retry", b"return"
"""Kinds of plans that list rows again: those that failed, and inputs that are an earlier version of theirs again. Other
plans have none."""

_GROUP_ROWS = 10_000
"""Pieces in a row group, so that a worker which looks up its chunk reads about 100 kB."""
_NAME = re.compile(r"(\d{6,})\.parquet")


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A chunk without its pieces: its id, plan number, place in the plan file (`first`, `count` pieces), and images."""

    chunk_id: str
    plan: int
    first: int
    count: int
    n_rows: int


class Place(NamedTuple):
    """Rows of one input in a plan: `n_rows` rows from `first_row` on, in which plan and chunk."""

    path: str
    first_row: int
    n_rows: int
    plan: int
    chunk_id: str

    @property
    def rows(self) -> range:
        """Numbers of the rows."""
        return range(self.first_row, self.first_row + self.n_rows)


class PlanWriter:
    """Encodes a plan in memory, row group by row group.

    One of rows that are tried again has its number as `retry`, one of inputs that came back as `returned`.
    """

    def __init__(self, retry: int = 0, returned: int = 0) -> None:
        self._again = retry or returned
        self._kind = {_KIND: _RETRY if retry else _RETURN} if self._again else {}
        self.chunks = self.rows = self.pieces = 0
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._sink, PLAN_SCHEMA, compression="zstd", write_page_checksum=True, store_schema=False
        )
        self._pending: list[tuple[object, ...]] = []

    def add(self, chunk: Chunk) -> None:
        """Append a chunk."""
        name, row = chunk_id(chunk, self._again), attrgetter(*PLAN_SCHEMA.names[1:])
        self._pending += [(name, *row(piece)) for piece in chunk]
        self.chunks += 1
        self.rows += sum(piece.n_rows for piece in chunk)
        self.pieces += len(chunk)
        if len(self._pending) >= _GROUP_ROWS:
            self._write_group()

    def finish(self) -> bytes:
        """The file's content, once: what it was made of is not kept beside it."""
        if self._pending:
            self._write_group()
        marks = {_CHUNKS: str(self.chunks), _ROWS: str(self.rows)} | self._kind
        self._writer.add_key_value_metadata({**marks, seal.KEY: seal.BLANK})
        self._writer.close()
        with self._sink:
            return seal.seal(self._sink)

    def _write_group(self) -> None:
        table = pa.table([list(column) for column in zip(*self._pending, strict=True)], schema=PLAN_SCHEMA)
        self._writer.write_table(table, row_group_size=len(self._pending))
        self._pending.clear()


def plan_uri(run_uri: str, number: int) -> str:
    """Where plan `number` of a run is."""
    return storage.join(run_uri, "plans", f"{number:06}.parquet")


def newest_plan(run_uri: str) -> int:
    """Number of the newest plan, 0 when there is none. Raises AuditError when one before it is missing."""
    numbers = list_plans(run_uri)
    if numbers != list(range(1, len(numbers) + 1)):
        missing = next(number for number in range(1, numbers[-1] + 1) if number not in numbers)
        raise AuditError(
            f"{plan_uri(run_uri, missing)} is missing, though later plans are there: without it, finished work would "
            "be planned again; restore the file, or start over in another output folder"
        )
    return len(numbers)


def list_plans(run_uri: str) -> list[int]:
    """Numbers of the plans that are there, sorted."""
    matches = [_NAME.fullmatch(entry.path) for entry in storage.list_files(storage.join(run_uri, "plans"))]
    return sorted(int(match[1]) for match in matches if match)


def read_totals(run_uri: str, number: int) -> tuple[int, int]:
    """Chunks and images of a plan, of which every bit was looked at: one that is misread would be planned again."""
    with _open(run_uri, number) as plan:
        if seal.is_broken(storage.read_bytes(plan_uri(run_uri, number))):
            raise ValueError("it is not what was written")
        metadata = plan.metadata.metadata or {}
        return int(metadata[_CHUNKS]), int(metadata[_ROWS])


def is_retry(run_uri: str, number: int) -> bool:
    """True for a plan of rows that are tried again."""
    with _open(run_uri, number) as plan:
        return _kind(plan) == _RETRY


def read_versions(run_uri: str, number: int) -> Iterator[tuple[str, str, int]]:
    """(path, version, plan) of every piece of a plan, sorted by path, a row group at a time in memory."""
    for table in _read_groups(run_uri, number, ["path", "version"]):
        for batch in table.to_batches(1000):
            yield from zip(batch[0].to_pylist(), batch[1].to_pylist(), repeat(number, len(batch)), strict=True)


def read_places(run_uri: str, number: int) -> Iterator[tuple[str, int, int, int, str]]:
    """The cells of each Place of a plan, sorted by path and row, a row group at a time in memory."""
    columns = ["path", "first_row", "n_rows", "chunk_id"]
    for table in _read_groups(run_uri, number, columns):
        for batch in table.select(columns).to_batches(1000):
            path, first_row, n_rows, chunk_id = (column.to_pylist() for column in batch.columns)
            yield from zip(path, first_row, n_rows, repeat(number, len(path)), chunk_id, strict=True)


def read_table_chunks(run_uri: str, number: int) -> Iterator[tuple[str, str]]:
    """(path, chunk id) of every piece of a plan that is of a table or tar, sorted by path."""
    for table in _read_groups(run_uri, number, ["path", "kind", "chunk_id"]):
        found = table.filter(pc.not_equal(table["kind"], "image"))
        yield from zip(found["path"].to_pylist(), found["chunk_id"].to_pylist(), strict=True)


def read_refs(run_uri: str, number: int) -> Iterator[list[ChunkRef]]:
    """The chunks of a plan, a row group at a time."""
    first = 0
    for table in _read_groups(run_uri, number, ["chunk_id", "n_rows"]):
        refs = []
        rows = zip(table["chunk_id"].to_pylist(), table["n_rows"].to_pylist(), strict=True)
        for name, pieces in groupby(rows, key=lambda row: row[0]):
            sizes = [size for _, size in pieces]
            refs.append(ChunkRef(name, number, first, len(sizes), sum(sizes)))
            first += len(sizes)
        yield refs


def read_pieces(run_uri: str, ref: ChunkRef) -> list[Piece]:
    """The pieces of a chunk, from the one row group that holds them. Raises AuditError when the plan has changed."""
    with _open(run_uri, ref.plan) as plan:
        offset, group = 0, 0
        while offset + plan.metadata.row_group(group).num_rows <= ref.first:
            offset += plan.metadata.row_group(group).num_rows
            group += 1
        rows = plan.read_row_group(group).slice(ref.first - offset, ref.count).to_pylist()
        again = ref.plan if _kind(plan) in {_RETRY, _RETURN} else 0
    names = {row.pop("chunk_id") for row in rows}
    pieces = [Piece(**row) for row in rows]
    if names != {ref.chunk_id} or chunk_id(pieces, again) != ref.chunk_id:
        raise AuditError(f"{plan_uri(run_uri, ref.plan)} does not hold chunk {ref.chunk_id} at piece {ref.first}")
    return pieces


def _kind(plan: pq.ParquetFile) -> bytes | None:
    found: bytes | None = (plan.metadata.metadata or {}).get(_KIND)
    return found


def _read_groups(run_uri: str, number: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Row groups of a plan; the file is opened for each, so that a merge of many plans holds no file open."""
    group, count = 0, 1
    while group < count:
        with _open(run_uri, number) as plan:
            count = plan.num_row_groups
            table = plan.read_row_group(group, columns=list(columns))
        yield table
        group += 1


@contextmanager
def _open(run_uri: str, number: int) -> Iterator[pq.ParquetFile]:
    uri = plan_uri(run_uri, number)
    try:
        with storage.open_file(uri) as file:
            plan = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            found = plan.schema_arrow
            if not any(_is_alike(found, known) for known in (PLAN_SCHEMA, _BEFORE_TARS)):
                raise ValueError(f"its columns are {found}")
            yield plan
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise AuditError(f"{uri} is damaged: {error}; restore it, or start over in another output folder") from error


def _is_alike(found: pa.Schema, known: pa.Schema) -> bool:
    return bool((found.names, found.types) == (known.names, known.types))
