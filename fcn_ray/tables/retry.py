"""Trying again what failed: a plan of the kind "retry" lists rows once more, so that they get objects of their own.

No object changes for it: readers take the row of the newest plan. Only rows that are done are listed, so that of two
drivers which try at once the slower one finds nothing left: its rows are pending in the plan of the faster one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, tee

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import AuditError
from fcn_ray.tables import plan, planfile
from fcn_ray.tables.plan import PlanLog, Put, put_plan, read_log, read_states
from fcn_ray.tables.planfile import ChunkRef, PlanWriter
from fcn_ray.tables.sources import Piece
from fcn_ray.tables.statuses import Key, read_rows
from fcn_ray.tables.superseded import Superseded, find_superseded

Published = Mapping[str, Mapping[str, int]]
"""Images by status of each chunk, by chunk id, as a manifest says."""

NOTHING: Published = {}


def plan_retries(
    log: PlanLog,
    statuses: Collection[str],
    limits: ChunkConfig,
    put: Put = storage.put_if_absent,
    published: Published = NOTHING,
) -> PlanLog:
    """Plan all current rows once more that are done with one of these statuses, and return the log with them.

    Chunks of which `published` does not tell are read.
    """
    while True:
        superseded = find_superseded(log.run_uri, log.newest)
        failed = find_failed(log.run_uri, log.newest, statuses, superseded, published)
        pieces = list(islice(failed, plan.MAX_PLAN_PIECES))
        if not pieces:
            return log
        draft = PlanWriter(retry=log.newest + 1)
        for chunk in _cut(sorted(pieces, key=lambda piece: (piece.path, piece.first_row)), limits):
            draft.add(chunk)
        if put_plan(log.run_uri, log.newest + 1, draft, put):
            log = replace(log, newest=log.newest + 1, chunks=log.chunks + draft.chunks, rows=log.rows + draft.rows)
            if len(pieces) < plan.MAX_PLAN_PIECES:
                return log
        else:  # another driver was faster
            log = replace(read_log(log.run_uri), listing=log.listing)


def find_failed(
    run_uri: str,
    newest: int,
    statuses: Collection[str],
    superseded: Superseded,
    published: Published = NOTHING,
) -> Iterator[Piece]:
    """Rows of the plans up to `newest` that are done with one of `statuses` and not `superseded`, by what is done or
    not.

    Rows of a table that follow one another are one piece. Chunks of which `published` does not tell are read.
    """
    states = read_states(run_uri, newest)
    done = (ref for ref, is_done in states if is_done and not superseded.has_all(ref.chunk_id))
    bad = (ref for ref in done if ref.chunk_id not in published or published[ref.chunk_id].keys() & set(statuses))
    refs, same = tee(bad)
    for ref, rows in zip(refs, read_rows(run_uri, (ref.chunk_id for ref in same)), strict=True):
        past = {(place.path, row) for place in superseded.parts.get(ref.chunk_id, ()) for row in place.rows}
        wanted = {key for key, status in rows.items() if status in statuses} - past
        if wanted:
            yield from _pieces(run_uri, ref, wanted)


def _pieces(run_uri: str, ref: ChunkRef, wanted: set[Key]) -> Iterator[Piece]:
    """The parts of a chunk's pieces that hold the wanted rows."""
    for piece in planfile.read_pieces(run_uri, ref):
        first = piece.first_row
        for row in range(first, first + piece.n_rows + 1):
            if (piece.path, row) in wanted and row < piece.first_row + piece.n_rows:
                wanted.remove((piece.path, row))
            else:
                if first < row:
                    yield _part(piece, first, row - first)
                first = row + 1
    if wanted:
        raise AuditError(
            f"chunk {ref.chunk_id} has the row {min(wanted)}, which is not in its plan; run `fcn-ray audit`"
        )


def _cut(pieces: Iterable[Piece], limits: ChunkConfig) -> Iterator[Sequence[Piece]]:
    """Chunks of image files, or of pieces of one table or tar, within the limits; a row counts as the mean of its
    piece."""
    chunk: list[Piece] = []
    rows = size = 0
    for piece in _split(pieces, limits):
        is_table = piece.kind != "image"
        apart = chunk and (is_table or chunk[0].kind != "image") and piece.path != chunk[0].path
        if chunk and (apart or rows + piece.n_rows > limits.rows or size + piece.size > limits.bytes):
            yield chunk
            chunk, rows, size = [], 0, 0
        chunk.append(piece)
        rows, size = rows + piece.n_rows, size + piece.size
    if chunk:
        yield chunk


def _split(pieces: Iterable[Piece], limits: ChunkConfig) -> Iterator[Piece]:
    """The same rows in pieces within the limits, of one row at least."""
    for piece in pieces:
        rows = min(limits.rows, max(1, limits.bytes * piece.n_rows // max(1, piece.size)))
        for first in range(piece.first_row, piece.first_row + piece.n_rows, rows):
            yield _part(piece, first, min(rows, piece.first_row + piece.n_rows - first))


def _part(piece: Piece, first_row: int, n_rows: int) -> Piece:
    size = -(-piece.size * n_rows // piece.n_rows)  # as if all rows were alike
    return replace(piece, first_row=first_row, n_rows=n_rows, size=size)
