"""The audit of a run's plan log: is every chunk's id right, and every input version in one plan, each row in one chunk.

Plans of the kinds "retry" and "return" list rows again: only rows that a plan before them has, none of them twice. What
a return lists is not the version that the newest plan before it has. Shares no code with the writer.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import json
from collections.abc import Container, Iterable, Iterator
from itertools import groupby, pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.tables.audit_rows import check_seal

Problem = tuple[str, str]
"""Kind of finding, and what was found and expected."""


_TYPES = {
    "path": pa.string(),
    "version": pa.string(),
    "first_row": pa.int64(),
    "n_rows": pa.int64(),
    "kind": pa.string(),
    "chunk_id": pa.string(),
}
"""The columns that are checked, and what they are in Arrow."""

_TAR_TYPES = {"offset": pa.int64(), "offset_row": pa.int64()}
"""More columns in the plans of versions that know tars."""

_KINDS = {"image", "parquet", "tar"}

_METADATA = {b"ARROW:schema", b"fcn_ray.chunks", b"fcn_ray.kind", b"fcn_ray.rows", b"fcn_ray.seal"}
"""The keys of a plan's metadata: one that is damaged is another one."""


class PlanRow(NamedTuple):
    """One row of a plan file, and the number of the plan."""

    path: str
    version: str
    first_row: int
    n_rows: int
    kind: str
    chunk_id: str
    plan: int
    offset: int = 0
    offset_row: int = 0


def plan_file(run_uri: str, number: int) -> str:
    """Where a plan is."""
    return storage.join(run_uri, f"plans/{number:06}.parquet")


def read_chunks(run_uri: str, number: int) -> Iterator[tuple[str, list[PlanRow]]]:
    """Each chunk of a plan with its rows, in order."""
    for chunk_id, rows in groupby(_read_rows(run_uri, number), key=lambda row: row.chunk_id):
        yield chunk_id, list(rows)


def check_plan(run_uri: str, number: int) -> Iterator[Problem]:
    """Everything that is wrong with one plan by itself."""
    chunks = images = 0
    try:
        data = storage.read_bytes(plan_file(run_uri, number))
        metadata = pq.read_metadata(io.BytesIO(data))
        marks = metadata.metadata or {}
        yield from (("plan", message) for _, message in check_seal(data, metadata))
        kind = marks.get(b"fcn_ray.kind")
        if kind not in (None, b"retry", b"return"):
            yield "plan", f"is of the unknown kind {kind!r}"
        for chunk_id, rows in read_chunks(run_uri, number):
            chunks += 1
            images += sum(row.n_rows for row in rows)
            yield from _check_chunk(chunk_id, rows, kind is not None)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        yield "plan", f"cannot be read: {error!r}"
        return
    found = (marks.get(b"fcn_ray.chunks", b""), marks.get(b"fcn_ray.rows", b""))
    if found != (str(chunks).encode(), str(images).encode()):
        yield "plan", f"says it has {found} chunks and images, found {chunks} and {images}"
    unknown = sorted(marks.keys() - _METADATA)
    if unknown:
        yield "plan", f"has metadata {unknown}, which are none of ours"


def find_kinds(run_uri: str, numbers: Iterable[int]) -> tuple[set[int], set[int]]:
    """Which of these plans are retries, and which are returns."""
    kinds = {number: _read_kind(run_uri, number) for number in numbers}
    retries, returns = ({n for n, found in kinds.items() if found == kind} for kind in (b"retry", b"return"))
    return retries, returns


def check_coverage(
    run_uri: str, numbers: Iterable[int], retries: Container[int] = (), returns: Container[int] = ()
) -> Iterator[Problem]:
    """Input versions in more than one plan, rows in no chunk or in two, retries of what was not planned before.

    A merge of the sorted plans; those whose number is in `retries` or `returns` may list rows again.
    """
    streams = [_read_rows(run_uri, number) for number in numbers]
    merged = heapq.merge(*streams, key=lambda row: row.path)
    previous = ""
    for path, found in groupby(merged, key=lambda row: row.path):
        if path <= previous:
            yield "plan", f"plans are not sorted: {path!r} after {previous!r}"
        previous = path
        rows = sorted(found)
        for version, same in groupby(rows, key=lambda row: row.version):
            everywhere = list(same)
            again = [row for row in everywhere if row.plan in retries or row.plan in returns]
            planned = [row for row in everywhere if row.plan not in retries and row.plan not in returns]
            yield from _check_version(path, version, planned)
            yield from _check_kind(path, version, everywhere)
            yield from _check_retries(path, version, planned, again)
        yield from _check_returns(path, [row for row in rows if row.plan not in retries], returns)


def _read_kind(run_uri: str, number: int) -> bytes | None:
    with storage.open_file(plan_file(run_uri, number)) as file:
        kind: bytes | None = (pq.read_metadata(file).metadata or {}).get(b"fcn_ray.kind")
        return kind


def _check_chunk(chunk_id: str, rows: list[PlanRow], again: bool) -> Iterator[Problem]:
    identity: list[list[object]] = [["retry", rows[0].plan]] if again else []
    identity += [[row.path, row.version, row.kind, row.first_row, row.n_rows] for row in rows]
    text = json.dumps(identity, separators=(",", ":"))
    computed = hashlib.sha256(text.encode()).hexdigest()[:32]
    if computed != chunk_id:
        yield "chunk_id", f"chunk {chunk_id} of {rows[0].path!r} has an id that should be {computed}"


def _check_version(path: str, version: str, rows: list[PlanRow]) -> Iterator[Problem]:
    plans = sorted({row.plan for row in rows})
    if len(plans) > 1:
        yield "twice", f"{path!r} (version {version}) is in plans {plans}, expected one"
    next_row = 0
    for row in rows:
        if row.first_row != next_row or row.n_rows < 1:
            yield "twice", f"{path!r} (version {version}): rows from {row.first_row} on, expected from {next_row} on"
            return
        next_row += row.n_rows
    if rows and rows[0].kind == "image" and next_row != 1:
        yield "twice", f"{path!r} (version {version}) is one image, found {next_row} rows"


def _check_kind(path: str, version: str, rows: list[PlanRow]) -> Iterator[Problem]:
    """One kind, and offsets of a tar only: a block of 512 bytes each, further on with each row that begins there."""
    kinds, places = sorted({row.kind for row in rows}), sorted({(row.offset_row, row.offset) for row in rows})
    if len(kinds) > 1 or kinds[0] not in _KINDS:
        yield "kind", f"{path!r} (version {version}) is {' and '.join(kinds)}, expected one of {sorted(_KINDS)}"
    elif kinds == ["tar"]:
        wrong = any(offset % 512 or min(row, offset) < 0 for row, offset in places)
        wrong = wrong or any(row == later or at >= behind for (row, at), (later, behind) in pairwise(places))
        if wrong or any(row.offset_row > row.first_row for row in rows):
            yield (
                "offset",
                f"{path!r} (version {version}) has (row, byte) {places}, expected later blocks for later rows",
            )
    elif places != [(0, 0)]:
        yield "offset", f"{path!r} (version {version}) has (row, byte) {places}, expected none: it is no tar"


def _check_retries(path: str, version: str, planned: list[PlanRow], retried: list[PlanRow]) -> Iterator[Problem]:
    """What is tried again was planned before, and is in each retry once."""
    first_plan = min((row.plan for row in planned), default=None)
    end = max((row.first_row + row.n_rows for row in planned), default=0)
    borders: dict[int, int] = {}
    for row in retried:  # by row, of all retries together
        if first_plan is None or row.plan < first_plan or row.n_rows < 1 or row.first_row + row.n_rows > end:
            yield "retry", f"{path!r} (version {version}): plan {row.plan} tries rows again that no plan before has"
        elif row.first_row < borders.get(row.plan, 0):
            yield "twice", f"{path!r} (version {version}): plan {row.plan} tries row {row.first_row} again twice"
        borders[row.plan] = row.first_row + row.n_rows


def _check_returns(path: str, listed: list[PlanRow], returns: Container[int]) -> Iterator[Problem]:
    """What came back was something else before, and is there with all its rows."""
    ends: dict[str, int] = {}
    before = ""
    for (plan, version), same in groupby(
        sorted(listed, key=lambda row: (row.plan, row.version, row.first_row)), key=lambda row: (row.plan, row.version)
    ):
        rows = list(same)
        count = sum(row.n_rows for row in rows)
        if plan in returns and version == before:
            yield "twice", f"{path!r} (version {version}): plan {plan} says it is back, but it was there"
        if plan in returns and count != ends.get(version, count):
            yield "retry", f"{path!r} (version {version}): plan {plan} has {count} rows of {ends[version]}"
        ends.setdefault(version, count)
        before = version


def _read_rows(run_uri: str, number: int) -> Iterator[PlanRow]:
    """Rows of a plan, a row group at a time; the file is opened for each, so that many plans can be merged."""
    group, count = 0, 1
    while group < count:
        with storage.open_file(plan_file(run_uri, number)) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            count = parquet.num_row_groups
            expected = _TYPES | {name: kind for name, kind in _TAR_TYPES.items() if name in parquet.schema_arrow.names}
            table = parquet.read_row_group(group, columns=list(expected)).select(list(expected))
        if table.schema.types != list(expected.values()):
            raise ValueError(f"its columns are {table.schema.types}, expected {list(expected.values())}")
        for batch in table.to_batches(1000):
            yield from (PlanRow(**row, plan=number) for row in batch.to_pylist())
        group += 1
