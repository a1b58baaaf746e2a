"""train(config): check, connect, run groups of workers until the training is done, and say what came out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcn_ray import cluster, storage
from fcn_ray.config import TrainConfig
from fcn_ray.config_text import dump_config, flatten
from fcn_ray.errors import DivergedError, IncompleteError, StorageError, TerminatedError
from fcn_ray.reports.progress import format_duration
from fcn_ray.reports.tracking import Tracker, follow
from fcn_ray.training.checkpoints import Checkpoint, find_newest, list_checkpoints, remove_torn
from fcn_ray.training.divergence import Divergence, go_back, read_divergence
from fcn_ray.training.frequencies import find_class_weights
from fcn_ray.training.group import Group
from fcn_ray.training.preflight import Job, prepare
from fcn_ray.training.promotion import Promotion, promote
from fcn_ray.training.room import INGEST_CPUS, count_free, count_room, find_smaller, wait_again, wait_for_room
from fcn_ray.training.seeing import trackers, write_report

logger = logging.getLogger(__name__)

LOOK_SECONDS, LOOKS = 10.0, 3
"""Between two looks at the cluster while a group runs, and how often it must look the same before something is done."""

HOLD_SECONDS = 600.0
"""That a group stays small, once a larger one could not be started."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training job left behind."""

    bundle: str
    digest: str
    epoch: int
    """Epoch of the best checkpoint, which the bundle holds; counted from 1."""
    metrics: dict[str, Any]
    """Of the bundle on the validation set, measured in a fresh process; empty without one."""
    page: str | None
    """Path of the training's report; None when it could not be written."""
    seconds: float

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        page = f"; curves and pictures: {self.page}" if self.page else ""
        yield f"trained in {format_duration(self.seconds)}; best epoch {self.epoch}{page}"
        yield f"next:  fcn-ray segment IMAGES MASKS --model {self.bundle}"


def train(
    config: TrainConfig, on_record: Callable[[dict[str, Any]], None] | None = None, *, verbose: bool = False
) -> TrainReport:
    """Train an FCN on Ray Train workers; the best checkpoint becomes the bundle at `<out>/bundle`.

    `on_record` is called on the driver with {"kind": "start" | "workers" | "step" | "checkpoint" | "epoch" | "warning"
    | "bundle", ...} as things happen. Workers that die, or nodes that go, bring the group back from its last
    checkpoint. Raises FcnRayError subclasses; IncompleteError means that the same command with `resume` goes on.
    """
    job = prepare(config)
    found = trackers(job)  # before the cluster is touched: a package may be missing
    try:
        return _train(job, found, on_record, verbose)
    except TerminatedError as interrupt:
        raise IncompleteError(
            f"stopped by SIGTERM: the same command with --resume goes on from {job.config.out}"
        ) from interrupt


def _train(
    job: Job, found: Sequence[Tracker], on_record: Callable[[dict[str, Any]], None] | None, verbose: bool
) -> TrainReport:
    start = time.monotonic()
    workers = job.config.workers
    cluster.connect(job.config.address, cpus=workers.count * workers.cpus + INGEST_CPUS, verbose=verbose)
    count = wait_for_room(job)
    job = _with_class_weights(job)
    remove_torn(job.config.out)
    storage.replace(storage.join(job.config.out, "config.yaml"), dump_config(job.config).encode())
    with follow(found) as track:

        def hear(record: dict[str, Any]) -> None:
            try:
                track(record)
                if on_record:
                    on_record(record)
            except Exception:  # a closed terminal or a caller's mistake must not cost the training
                logger.exception("a record of the training could not be passed on")

        hear(_start_record(job))
        _run_groups(job, count, hear)
        with cluster.own_errors():
            promotion = promote(job, wait_again(job), hear)
        bundle, metrics = promotion.bundle, promotion.bundle.metadata["metrics"]
        epoch = promotion.checkpoint.epoch
        hear({"kind": "bundle", "folder": bundle.folder, "digest": bundle.digest, "epoch": epoch, "metrics": metrics})
        page = _write_page(job, promotion)
        hear({"kind": "page", "path": page})
    return TrainReport(bundle.folder, bundle.digest, epoch, metrics, page, time.monotonic() - start)


def _write_page(job: Job, promotion: Promotion) -> str | None:
    """Path of the report; None when it could not be made: the bundle is there, and that is what counts."""
    try:
        return write_report(job, promotion)
    except Exception:
        logger.exception("the report of the training could not be written")
        return None


def _start_record(job: Job) -> dict[str, Any]:
    found = list_checkpoints(job.config.out)
    return {
        "kind": "start",
        "network": f"FCN-{job.spec.variant} {job.spec.backbone}",
        "images": sum(piece.n_rows for piece in job.train_pieces),
        "val_images": sum(piece.n_rows for piece in job.val_pieces),
        "epochs": job.config.epochs,
        "steps": job.config.epochs * job.steps_per_epoch,
        "step": found[-1].step if found else 0,
        "workers": job.config.workers.count,
        "class_weights": job.class_weights,
        "classes": list(job.labels.names),
        "settings": flatten(job.config),
    }


# ------------------------------------------------------------------------------------------------- groups of workers


@dataclass
class _Past:
    """What has happened to a training so far."""

    divergence: Divergence
    failures: int = 0
    """In a row, without a new checkpoint."""
    rate_factor: float | None = None
    """On the learning rate, once it is known."""
    step: int = -1
    """The last one that a group began at."""
    most: int | None = None
    """Workers that the next group may have, when that is less than the nodes can hold: other jobs have them."""
    held_until: float = 0.0
    """By the monotonic clock: `most` stays as it is, and the group does not grow."""


def _run_groups(job: Job, count: int, hear: Callable[[dict[str, Any]], None]) -> None:
    """Groups of workers, one after the other, until the training is done.

    A group ends early when a worker dies, when it is to be larger (nodes came back), or when the training diverges.
    """
    told: dict[str, dict[str, Any]] = {}

    def listen(record: dict[str, Any]) -> None:
        told[record["kind"]] = record
        if record["kind"] not in ("trained", "stopped"):
            hear(record)

    divergence = read_divergence(job)
    past = _Past(divergence, rate_factor=divergence.rate_factor)
    if divergence.rollbacks:
        message = f"it has diverged before, and goes on with {divergence.rate_factor:g} times the learning rate"
        hear({"kind": "warning", "step": 0, "message": message})
    while "trained" not in told:
        place = _find_place(job, past.divergence.distrusted)
        step = place.step if place else 0
        past.rate_factor = past.rate_factor or (place.rate_factor if place else 1.0)
        past.failures, past.step = (0 if step > past.step else past.failures), max(step, past.step)
        past.most = past.most if time.monotonic() < past.held_until else None
        told.pop("stopped", None)
        hear({"kind": "workers", "count": count, "step": step})
        try:
            _run_group(job, Group(job, count, place, past.rate_factor, listen), count, told, past)
            if not {"trained", "stopped"} & told.keys():
                raise RuntimeError("the workers ended without a word")
        except (KeyboardInterrupt, IncompleteError):
            raise
        except Exception as error:
            hear({"kind": "warning", "step": step, "message": _survive(job, past, count, error)})
        if "trained" not in told:
            room = wait_again(job)
            count = min(room, past.most or room)


def _find_place(job: Job, distrusted: Collection[str]) -> Checkpoint | None:
    """The checkpoint to go on from; None at the start. Raises StorageError when there are some and all are damaged."""
    place = find_newest(job.config.out, distrusted)
    damaged = [found for found in list_checkpoints(job.config.out) if found.name not in distrusted]
    if place is None and damaged:  # days of training: not to be done again without a word
        folder = storage.join(job.config.out, "checkpoints")
        raise StorageError(
            f"none of the {len(damaged)} checkpoints in {folder} can be read back: "
            "put them back as they were, or delete them to start anew"
        )
    return place


def _survive(job: Job, past: _Past, count: int, error: Exception) -> str:
    """Note what ended a group of `count`, and say what comes next; raise what no other group can mend."""
    if smaller := find_smaller(job, count, error):
        past.most, past.held_until = smaller, time.monotonic() + HOLD_SECONDS
        return f"no room for {count} workers after all, as other jobs run here: starting with {smaller}"
    own = cluster.find_own_error(error)
    if isinstance(own, DivergedError) and past.divergence.rollbacks < job.config.divergence.rollbacks:
        past.divergence = go_back(job, past.divergence, past.rate_factor or 1.0)
        past.rate_factor = past.divergence.rate_factor
        place = "the last checkpoint" if past.divergence.rollbacks == 1 else "the checkpoint before the last"
        return f"{own}. Back to {place}, with {past.rate_factor:g} times the learning rate"
    if own is not None and not isinstance(own, StorageError):
        raise own from error
    if own is None and cluster.is_mistake(error):
        raise error
    past.failures += 1
    last = cluster.last_line(error)
    if past.failures <= job.config.workers.max_failures:
        return f"workers failed ({own or last}); starting again from the last checkpoint"
    if own is not None:
        raise own from error
    raise IncompleteError(
        f"the workers failed {past.failures} times, the last time with: {last}. "
        f"Checkpoints are in {job.config.out}: the same command with --resume goes on"
    ) from error


def _run_group(job: Job, group: Group, count: int, told: dict[str, dict[str, Any]], past: _Past) -> None:
    """Wait for the group's end; end it when the cluster has room for a larger one, or when the driver is interrupted.

    A node that held a worker ends the group by itself. One that only prepared input does not: others take over.
    """
    look, large = time.monotonic() + LOOK_SECONDS, 0
    try:
        while not group.wait(0.2):
            if time.monotonic() < look:
                continue
            look = time.monotonic() + LOOK_SECONDS
            larger = min(count_room(job), job.config.workers.count, count + count_free(job))
            large = large + 1 if count < larger and look >= past.held_until else 0
            if large == LOOKS:
                past.most = larger
                group.ask_to_stop()
    except KeyboardInterrupt as interrupt:
        _stop(job, group, told, interrupt)


def _stop(job: Job, group: Group, told: dict[str, dict[str, Any]], interrupt: KeyboardInterrupt) -> None:
    """Ask for a checkpoint, wait for it, and end: SIGTERM is told from an interrupt at the keyboard."""
    group.ask_to_stop()
    try:
        if not group.wait(job.config.stop_seconds):
            group.abort()
    except Exception as error:
        logger.warning("the workers failed while they stopped: %s", cluster.last_line(error))
    if not isinstance(interrupt, TerminatedError):
        raise interrupt
    saved = _describe_last(told)
    raise IncompleteError(
        f"stopped by SIGTERM, {saved}: the same command with --resume goes on from {job.config.out}"
    ) from interrupt


def _describe_last(told: dict[str, dict[str, Any]]) -> str:
    """The checkpoint that workers left which were asked to stop; they may not have come to say so."""
    stopped, saved = told.get("stopped"), told.get("checkpoint")
    if stopped and stopped["folder"]:
        return f"checkpoint {stopped['folder']}"
    return f"last checkpoint {saved['folder']}" if saved and not stopped else "no checkpoint of the last steps"


# -------------------------------------------------------------------------------------------------------------- rest


def _with_class_weights(job: Job) -> Job:
    """The job with the class weights that its training labels give, when it asks for those."""
    kind = job.config.loss.class_weights
    if isinstance(kind, tuple) or kind == "none":
        return job
    with cluster.own_errors():
        return replace(job, class_weights=find_class_weights(kind, job.train_pieces, job.columns, job.labels))
