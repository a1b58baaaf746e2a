"""What a labelling job has to do: planned before Ray is started, and counted when it is done."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from tempfile import TemporaryDirectory

from fcn_ray import storage
from fcn_ray.config import SegmentConfig
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.manifest import Manifest, finish, read_newest
from fcn_ray.tables.plan import PlanLog, extend_plan, pending_chunks, preview_plan
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.retry import NOTHING, Published, find_failed, plan_retries
from fcn_ray.tables.runs import Run
from fcn_ray.tables.schema import BAD_STATUSES, PASSING_STATUSES
from fcn_ray.tables.sources import Piece
from fcn_ray.tables.statuses import count_current
from fcn_ray.tables.superseded import Superseded, find_superseded

RETRIED: Mapping[str, Sequence[str]] = {"none": (), "passing": PASSING_STATUSES, "all": BAD_STATUSES}
"""What `retry_failed` means: rows with these statuses are tried again."""


@dataclass(frozen=True)
class Work:
    """The plans of a run, the chunks that are to do, which rows newer plans have again, and the newest manifest, if it
    had to be read."""

    log: PlanLog
    pending: Sequence[ChunkRef]
    superseded: Superseded
    manifest: Manifest | None = None

    @property
    def stale(self) -> Mapping[str, int]:
        """How many rows of a chunk are superseded, by chunk id."""
        return self.superseded.rows

    @property
    def images(self) -> int:
        """Images of the run; one that has several rows counts once."""
        return self.log.rows - sum(self.stale.values())

    @property
    def todo(self) -> int:
        """Rows of the pending chunks."""
        return sum(ref.n_rows for ref in self.pending)

    @property
    def skipped(self) -> int:
        """Images whose row is there, and stays."""
        return self.images - sum(ref.n_rows - self.stale.get(ref.chunk_id, 0) for ref in self.pending)


def plan_work(run: Run, config: SegmentConfig, columns: Columns, since: datetime | None) -> Work:
    """Plan what is new, and what is to be tried again, and see what is to do."""
    log = extend_plan(run.uri, run.input, config.chunk, columns, since=_seconds(since), allowed=config.allow_paths)
    manifest = None
    if statuses := RETRIED[config.retry_failed]:
        manifest = read_newest(run.uri)
        log = plan_retries(log, statuses, config.chunk, published=_published(manifest))
    return Work(log, list(pending_chunks(log)), find_superseded(run.uri, log.newest), manifest)


def order_chunks(pending: Sequence[ChunkRef], other: str | None) -> Sequence[ChunkRef]:
    """The chunks in their order, or, where another job works on the run, from a random one on: two that begin with the
    same one would do the same chunks at the same time, since a chunk is left out only when it is stored. Not shuffled:
    row groups of tables are read forwards."""
    start = random.randrange(len(pending)) if other and pending else 0
    return [*pending[start:], *pending[:start]]


def finish_work(run: Run, work: Work, receipts: Iterable[Receipt]) -> Mapping[str, int]:
    """Put the manifest of a run that has no chunk pending; its images by status, as they are now."""
    manifest = finish(run, work.log, receipts, work.manifest)
    if not work.stale:
        return manifest.statuses
    return count_current(run.uri, manifest.statuses, manifest.read_published(), work.superseded)


def preview_work(
    run_uri: str, input_uri: str, config: SegmentConfig, columns: Columns, since: datetime | None
) -> tuple[Work, int]:
    """What `plan_work` would find, without writing to the run, and how many images would be to do.

    The work is that of the plans that are stored: the chunks of new ones are only counted, but what they supersede is
    known from drafts of them, which are kept on this machine meanwhile.
    """
    with TemporaryDirectory() as drafts:

        def keep(uri: str, data: bytes) -> bool:
            return storage.put_if_absent(storage.join(drafts, "plans", uri.rpartition("/")[2]), data)

        log = preview_plan(run_uri, input_uri, config.chunk, columns, _seconds(since), keep, config.allow_paths)
        work = Work(log, list(pending_chunks(log)), find_superseded(run_uri, log.newest, drafts=drafts))
    again: Iterable[Piece] = ()
    if statuses := RETRIED[config.retry_failed]:
        again = find_failed(run_uri, log.newest, statuses, work.superseded, _published(read_newest(run_uri)))
    return work, work.images - work.skipped + log.new_rows + sum(piece.n_rows for piece in again)


def _published(manifest: Manifest | None) -> Published:
    return manifest.read_published() if manifest else NOTHING


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
