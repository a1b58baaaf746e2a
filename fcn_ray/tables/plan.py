"""The plan log: which inputs make up which chunk, decided once (DESIGN 5).

A plan covers exactly the input versions that no earlier plan of the run covers, and is put, if absent, under the next
number. Whoever loses the race for a number starts over with the winner's plan. So every input version belongs to one
chunk for ever, however many drivers start at once and however the input grows between runs.

An input may come back: its content is what it was before the newest plan that has it. A plan of the kind "return" lists
that version once more, with chunks of its own, so that readers still take the rows of the newest plan.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import OutOfReachError, SchemaError, StorageError
from fcn_ray.failpoints import fail_at
from fcn_ray.tables import planfile
from fcn_ray.tables.ahead import Read, ReadAhead
from fcn_ray.tables.chunks import Chunk, cut_chunks
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.contents import RowGroup, read_contents
from fcn_ray.tables.inputs import locate_sources, understand_input
from fcn_ray.tables.places import Places
from fcn_ray.tables.planfile import ChunkRef, PlanWriter, plan_uri
from fcn_ray.tables.sources import Listing, Piece, Source, list_inputs

MAX_PLAN_PIECES = 1_000_000
"""A plan with this many pieces is put, and the next begun: an input of any size is planned with flat memory."""

_MASKS_NAME = re.compile(r"([0-9a-f]{32})\.parquet")

Ids = npt.NDArray[np.bytes_]
"""Ids of chunks, 32 bytes each."""

Put = Callable[[str, bytes], bool]
"""`storage.put_if_absent`, or a stand-in."""

IsRetry = Callable[[int], bool]
"""Whether the plan of a number lists rows that are tried again."""


@dataclass(frozen=True, slots=True)
class PlanLog:
    """The plans of a run: the newest number (0 without), chunks and images in all, how many of them are new since the
    job looked first, and what the listing of the input left out (not planned, and looked at again by every job)."""

    run_uri: str
    newest: int
    chunks: int
    rows: int
    new_chunks: int = 0
    new_rows: int = 0
    listing: Listing = field(default_factory=Listing)


@dataclass(frozen=True, slots=True)
class Totals:
    """Progress of a run."""

    chunks: int
    rows: int
    done_chunks: int
    done_rows: int


def read_log(run_uri: str) -> PlanLog:
    """The plan log as it is. Raises AuditError when a plan is missing."""
    newest = planfile.newest_plan(run_uri)
    totals = [planfile.read_totals(run_uri, number) for number in range(1, newest + 1)]
    return PlanLog(run_uri, newest, sum(chunks for chunks, _ in totals), sum(rows for _, rows in totals))


def extend_plan(
    run_uri: str,
    input_uri: str,
    limits: ChunkConfig,
    columns: Columns,
    put: Put = storage.put_if_absent,
    since: float | None = None,
    allowed: tuple[str, ...] = (),
) -> PlanLog:
    """Plan all input versions that no plan covers yet, or that came back, and return the log with them; without any, no
    plan is put.

    With `since` (seconds since 1970), only those that were modified then or later, or whose store does not say when.
    Tables and tars behind links are looked into below the input and the prefixes in `allowed` only.
    Raises ConfigError when there is no input, and SchemaError when the run has no chunk at all because the tables'
    columns do not do.
    """
    before = covered = read_log(run_uri)
    read = _reader(input_uri, columns, allowed)
    while (after := _extend_once(covered, input_uri, limits, read, put, since)) is None:
        covered = read_log(run_uri)  # another driver was faster: plan what its plan leaves
    if after.listing.returned:
        after = _extend_by_returns(covered.newest, after, input_uri, limits, read, put, since)
    refused = next((table for table in after.listing.quarantined if table.schema), None)
    if refused and not after.chunks:
        raise SchemaError(f"input {input_uri}, {refused.path}: {refused.reason}")
    new_chunks, new_rows = after.chunks - before.chunks, after.rows - before.rows
    return PlanLog(run_uri, after.newest, after.chunks, after.rows, new_chunks, new_rows, after.listing)


def preview_plan(
    run_uri: str,
    input_uri: str,
    limits: ChunkConfig,
    columns: Columns,
    since: float | None = None,
    put: Put = lambda uri, data: True,
    allowed: tuple[str, ...] = (),
) -> PlanLog:
    """The log that `extend_plan` would return, without writing anything; the run need not exist.

    Its `newest` is the newest plan that is stored, so that `pending_chunks` gives the chunks pending from before; the
    new plans are what `put` is called with.
    """
    stored = planfile.newest_plan(run_uri)
    log = extend_plan(run_uri, input_uri, limits, columns, put, since, allowed)
    return replace(log, newest=stored)


def pending_chunks(log: PlanLog) -> Iterator[ChunkRef]:
    """Chunks of the log without an object in `masks/`, in plan order, from one listing of names."""
    return (ref for ref, done in read_states(log.run_uri, log.newest) if not done)


def count_chunks(log: PlanLog) -> Totals:
    """How much of the log is done."""
    done_chunks = done_rows = 0
    for ref, done in read_states(log.run_uri, log.newest):
        done_chunks += done
        done_rows += done * ref.n_rows
    return Totals(log.chunks, log.rows, done_chunks, done_rows)


def read_chunk(run_uri: str, ref: ChunkRef) -> list[Piece]:
    """The inputs of a chunk, read from its plan: what a worker calls. Raises AuditError when the plan has changed."""
    return planfile.read_pieces(run_uri, ref)


def _extend_by_returns(
    covered: int, log: PlanLog, input_uri: str, limits: ChunkConfig, read: Read, put: Put, since: float | None
) -> PlanLog:
    """`log` with new plans for what came back, by another listing and the plans up to `covered`."""
    first = log.listing
    while (after := _extend_once(log, input_uri, limits, read, put, since, covered)) is None:
        log = replace(read_log(log.run_uri), listing=first)
        covered = log.newest
    found = after.listing
    first.older, first.n_quarantined = first.older + found.older, first.n_quarantined + found.n_quarantined
    first.quarantined += found.quarantined
    return replace(after, listing=first)


def _extend_once(
    log: PlanLog,
    input_uri: str,
    limits: ChunkConfig,
    read: Read,
    put: Put,
    since: float | None,
    returned: int | None = None,
) -> PlanLog | None:
    """`log` with new plans for what it does not cover; None as soon as a number is taken.

    With `returned`, for what came back by the plans up to that one, and its listing tells of nothing else.
    """
    listing = Listing()
    last = log.newest if returned is None else returned
    covered = heapq.merge(*(planfile.read_versions(log.run_uri, number) for number in range(1, last + 1)))
    is_retry = cache(partial(planfile.is_retry, log.run_uri))
    if returned is None:
        found = _uncovered(list_inputs(input_uri, listing), covered, is_retry, listing)
    else:
        found = _returned(list_inputs(input_uri), covered, is_retry)
    sources = _recent(found, since, listing)

    def contents(source: Source) -> Iterable[RowGroup]:
        try:
            return ahead.take(source)
        except OutOfReachError:  # no fault of the file
            raise
        except (SchemaError, StorageError) as error:
            listing.quarantine(source.path, error)
            return []

    newest, chunks, rows = log.newest, log.chunks, log.rows
    with closing(ReadAhead(read)) as ahead:
        begin = PlanWriter if returned is None else lambda: PlanWriter(returned=newest + 1)
        for plan in _draft_plans(cut_chunks(ahead.watch(sources), limits, contents), begin):
            newest += 1
            if not put_plan(log.run_uri, newest, plan, put):
                return None
            chunks, rows = chunks + plan.chunks, rows + plan.rows
    return PlanLog(log.run_uri, newest, chunks, rows, listing=listing)


def _reader(input_uri: str, columns: Columns, allowed: tuple[str, ...]) -> Read:
    """What looks into a table or tar of the input, at most where its images would be read."""
    where = understand_input(input_uri)
    locate, places = locate_sources(where), Places.around(where, allowed)
    return lambda source, closed: read_contents(places.check_file(locate(source.path)), source, columns, closed)


def put_plan(run_uri: str, number: int, draft: PlanWriter, put: Put) -> bool:
    """Put a plan under its number; False when another driver has put one there."""
    fail_at("plan.drafted")
    if not put(plan_uri(run_uri, number), draft.finish()):
        return False
    fail_at("plan.put")
    return True


def _uncovered(
    sources: Iterable[Source], covered: Iterator[tuple[str, str, int]], is_retry: IsRetry, listing: Listing
) -> Iterator[Source]:
    """Those of the sorted sources that no plan has in their version; `listing` counts those that came back."""
    for source, versions in _with_plans(sources, covered):
        if source.version not in versions:
            yield source
        elif _is_back(source, versions, is_retry):
            listing.returned += 1


def _returned(
    sources: Iterable[Source], covered: Iterator[tuple[str, str, int]], is_retry: IsRetry
) -> Iterator[Source]:
    """Those of the sorted sources whose version is in a plan, while the newest that has their path has another one."""
    for source, versions in _with_plans(sources, covered):
        if source.version in versions and _is_back(source, versions, is_retry):
            yield source


def _is_back(source: Source, versions: Mapping[str, set[int]], is_retry: IsRetry) -> bool:
    """Retries do not tell what was there when they were planned: they list rows as they were."""
    if len(versions) == 1:
        return False
    listed = {plan: version for version, plans in versions.items() for plan in plans if not is_retry(plan)}
    return listed[max(listed)] != source.version


def _with_plans(
    sources: Iterable[Source], covered: Iterator[tuple[str, str, int]]
) -> Iterator[tuple[Source, Mapping[str, set[int]]]]:
    """Each of the sorted sources, and the plans of each version of its path in the sorted stream `covered`."""
    planned = groupby(covered, key=lambda row: row[0])
    path, versions = "", dict[str, set[int]]()
    previous = ""
    for source in sources:
        if source.path <= previous:  # a chunk would be planned twice
            raise StorageError(f"the listing of the input is not sorted: {source.path!r} after {previous!r}")
        previous = source.path
        while path < source.path:
            path, rows = next(planned, (_END, iter(())))
            versions = {}
            for _, version, plan in rows:
                versions.setdefault(version, set()).add(plan)
        yield source, versions if path == source.path else {}


def _recent(sources: Iterable[Source], since: float | None, listing: Listing) -> Iterator[Source]:
    for source in sources:
        if since is not None and source.modified is not None and source.modified < since:
            listing.older += 1
        else:
            yield source


_END = "\U0010ffff" * 2
"""After every path: the end of a sorted stream."""


def _draft_plans(units: Iterable[Iterable[Chunk]], begin: Callable[[], PlanWriter]) -> Iterator[PlanWriter]:
    """Plans of about a million pieces, or one; chunks that come together go into the same."""
    plan = begin()
    for unit in units:
        for chunk in unit:
            plan.add(chunk)
        if plan.pieces >= MAX_PLAN_PIECES:
            yield plan
            plan = begin()
    if plan.pieces:
        yield plan


def read_states(run_uri: str, newest: int, done: Ids | None = None) -> Iterator[tuple[ChunkRef, bool]]:
    """Every chunk of the plans up to `newest`, and whether it is done, as one listing says (`done`, if it is there)."""
    done = list_done(run_uri) if done is None else done
    for number in range(1, newest + 1):
        for refs in planfile.read_refs(run_uri, number):
            ids = np.array([ref.chunk_id for ref in refs], dtype="S32")
            found = done[np.searchsorted(done, ids)] == ids
            yield from zip(refs, found.tolist(), strict=True)


def list_done(run_uri: str) -> Ids:
    """Sorted ids of the chunks in `masks/`, 32 bytes each, and one that is greater than all."""
    matches = (_MASKS_NAME.fullmatch(entry.path) for entry in storage.list_files(storage.join(run_uri, "masks")))
    return np.fromiter(chain((match[1] for match in matches if match), ["~"]), dtype="S32")


def is_done(done: Ids, chunk_id: str) -> bool:
    """Whether a chunk is among those that `list_done` gave."""
    return bool(done[np.searchsorted(done, chunk_id.encode())] == chunk_id.encode())
