"""What one Ray Train worker does, top to bottom: build the replica, go through the epochs, keep checkpoints.

Keras 3's `fit` does not run under MultiWorkerMirroredStrategy; `strategy.run` with a Keras optimizer does, with public
names only. One worker is one replica. All workers see the same outcome of every step and decide alike; rank 0 alone
writes and tells.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import tensorflow as tf

from fcn_ray.errors import DivergedError, StorageError
from fcn_ray.models.prediction import MaskFn, build_mask_fn
from fcn_ray.training import ingest, order
from fcn_ray.training.checkpoints import (
    Checkpoint,
    list_checkpoints,
    remove_old,
    save_checkpoint,
    save_score,
)
from fcn_ray.training.curve import keep_curve
from fcn_ray.training.feeding import Feeder
from fcn_ray.training.meter import Meter, find_peak_memory, time_each
from fcn_ray.training.preflight import Job
from fcn_ray.training.replica import Replica, build_replica
from fcn_ray.training.startup import Orders, Position, check_storage, find_feeder, find_position, listen, whole_epoch
from fcn_ray.training.step import Step, build_step
from fcn_ray.training.validation import predicts_one_class, validate

HIGH_FIRST_LOSS = 3.0
"""Times the loss of a network that knows nothing, ln(classes): new layers on features that are too large start so."""


EARLY_VALIDATIONS = 2
"""Those that may find a single class without a warning."""


@dataclass
class Worker:
    """One worker of a group, on its way."""

    orders: Orders
    replica: Replica
    step: Step
    position: Position
    feeder: Feeder
    stopping: threading.Event = field(default_factory=threading.Event)
    skipped: int = 0
    """Steps in a row that were not finite, up to now."""
    asked_to_stop: bool = False
    """By some worker, in the last step; all workers agree on it."""

    @property
    def job(self) -> Job:
        """The job, the same for every worker."""
        return self.orders.job

    def tell(self, record: dict[str, Any]) -> None:
        """To the driver, from one worker for all."""
        if self.replica.rank == 0:
            self.orders.tell(record)

    def warn(self, message: str) -> None:
        """Something that the training survives, but that somebody should know."""
        self.tell({"kind": "warning", "step": self.position.step, "message": message})


def run_worker(orders: Orders) -> None:
    """The worker's life: from a checkpoint, or the start, to the last epoch, or to the step where all are to stop."""
    job, config = orders.job, orders.job.config
    check_storage(job)
    context = ray.train.get_context()
    replica = build_replica(
        job,
        context.get_world_rank(),
        context.get_world_size(),
        local_world=context.get_local_world_size(),
        rate_factor=orders.rate_factor,
    )
    stopping = threading.Event()
    if replica.rank == 0:  # before the workers wait for each other for the first time
        threading.Thread(target=listen, args=(orders.bell, stopping), daemon=True).start()
    position, feeder = find_position(replica, orders), find_feeder(replica, orders)
    worker = Worker(orders, replica, build_step(replica, job), position, feeder, stopping)
    find_masks = tf.function(build_mask_fn(replica.model, job.preprocessing), reduce_retracing=True, autograph=False)
    if chosen := _unscored(orders):
        _end_epoch(worker, find_masks, dict(chosen.metrics), chosen.folder)
    while position.epoch < config.epochs:
        metrics = train_epoch(worker)
        if metrics is None:
            worker.tell({"kind": "stopped", "step": position.step, "folder": save(worker)})
            return
        position.epoch, position.remaining, position.losses = position.epoch + 1, whole_epoch(job), (0.0, 0)
        if _end_epoch(worker, find_masks, metrics | {"epoch": position.epoch, "step": position.step}):
            return
    worker.tell({"kind": "trained", "step": position.step})


def _is_scored(job: Job, epoch: int) -> bool:
    """Whether the end of `epoch` is to be validated."""
    return bool(job.val_pieces) and (epoch % job.config.val_every == 0 or epoch == job.config.epochs)


def _unscored(orders: Orders) -> Checkpoint | None:
    """The checkpoint to go on from, when it is the end of an epoch that was to be validated and has not been."""
    chosen = orders.resume_from
    ended = chosen is not None and "epoch" in chosen.metrics and "val" not in chosen.metrics
    return chosen if chosen and ended and _is_scored(orders.job, chosen.epoch) else None


def _end_epoch(worker: Worker, find_masks: MaskFn, metrics: dict[str, Any], saved: str | None = None) -> bool:
    """Save, unless it is `saved`, validate when it is due, tell. True when the training stops here, as it was asked to.

    A validation that is still to come is left to the group that goes on: it may take longer than whoever asks waits.
    """
    job, scored = worker.job, _is_scored(worker.job, worker.position.epoch)
    if scored:  # a validation takes long, and the epoch is worth keeping
        saved = saved or save(worker, None, metrics)
        if worker.asked_to_stop:
            worker.tell({"kind": "stopped", "step": worker.position.step, "folder": saved})
            return True
    result = validate(worker.replica, find_masks, job, worker.feeder) if scored else None
    if result:
        metrics |= {"val": result.scores.to_dict(), "val_data": job.val_digest, "precision": job.config.precision}
        _watch_for_collapse(worker, predicts_one_class(result.confusion, job.labels))
    _keep_curve(worker, {"kind": "epoch", **metrics})
    score = _known(result.scores.mean_iou) if result else None
    saved = _keep_score(worker, saved, score, metrics) if saved else save(worker, score, metrics)
    worker.tell({"kind": "epoch", **metrics})
    ray.train.report({"epoch": worker.position.epoch, "loss": metrics["loss"]})
    stops = worker.asked_to_stop and worker.position.epoch < job.config.epochs
    if stops:
        worker.tell({"kind": "stopped", "step": worker.position.step, "folder": saved})
    return stops


def _keep_score(worker: Worker, folder: str, score: float | None, metrics: dict[str, Any]) -> str:
    """Give a checkpoint its score, from rank 0; its folder. What is the best may have changed by that."""
    if worker.replica.rank == 0:
        try:
            save_score(folder, score, metrics)
        except StorageError as error:
            worker.warn(f"the validation of {folder} could not be kept beside it: {error}")
        _remove_old(worker, folder)
    return folder


def _remove_old(worker: Worker, written: str) -> None:
    """What cannot be deleted costs room, but neither the training nor the checkpoint that was `written`."""
    try:
        remove_old(worker.job.config.out, worker.job.config.keep_checkpoints, written)
    except StorageError as error:
        worker.warn(f"{written} is written, but older checkpoints could not be deleted: {error}")


def _keep_curve(worker: Worker, record: dict[str, Any]) -> None:
    """From rank 0; a curve that cannot be written does not end the training."""
    if worker.replica.rank != 0:
        return
    try:
        keep_curve(worker.job.config.out, record)
    except (StorageError, ValueError, KeyError) as error:  # of the storage, or of a file that somebody has changed
        worker.warn(f"epoch {record['epoch']} could not be added to the curve: {error!r}")


def _watch_for_collapse(worker: Worker, name: str | None) -> None:
    """Warn of a network that predicts one class only; early on every network does."""
    validations = worker.position.epoch // worker.job.config.val_every  # of the run: a group may begin in its midst
    if name is not None and validations > EARLY_VALIDATIONS:
        worker.warn(f"nearly every validation pixel is predicted as {name}: has the training collapsed?")


def _known(score: float) -> float | None:
    """None for the NaN of a validation set that holds nothing but void."""
    return None if math.isnan(score) else score


def save(worker: Worker, score: float | None = None, metrics: dict[str, Any] | None = None) -> str | None:
    """Write a checkpoint from rank 0; its folder. A storage that fails (a full disk) does not end the training.

    `metrics` are those of an epoch that has ended. None within an epoch after a step that was not finite: the step
    before it may be what made the weights useless, and nothing should go back to those. An epoch's end is kept all the
    same: the step changed no weight, and no other checkpoint holds the epoch.
    Raises StorageError when there is no checkpoint yet: a storage that never worked will not begin to.
    """
    config, position = worker.job.config, worker.position
    if worker.replica.rank != 0 or (worker.skipped and metrics is None):
        return None
    remaining = None if position.remaining == whole_epoch(worker.job) else position.remaining
    settings, factor = worker.job.settings, worker.orders.rate_factor
    about = metrics or ({"losses": position.losses} if remaining else {})
    draft = Checkpoint("", position.epoch, position.step, score, settings, about, remaining, factor)
    try:
        folder = save_checkpoint(config.out, draft, worker.replica.arrays()).folder
    except StorageError as error:
        if not list_checkpoints(config.out):
            raise
        worker.warn(f"no checkpoint of step {position.step}, those before it stay: {error}")
        return None
    _remove_old(worker, folder)
    worker.tell({"kind": "checkpoint", "step": position.step, "epoch": position.epoch, "folder": folder})
    return folder


def train_epoch(worker: Worker) -> dict[str, Any] | None:
    """All steps that remain of the current epoch: the mean loss of its steps, images/s, share of time without input.

    None when all workers were asked to stop before its end.
    """
    config, position = worker.job.config, worker.position
    shares = order.deal(position.remaining, config.batch_size, worker.replica.world)
    first, left = position.step, order.count_rows(position.remaining) // config.batch_size
    whole, lately = Meter(config.batch_size), Meter(config.batch_size)
    for number, batch, wait in time_each(_stream_share(worker, shares)):
        outcome = worker.step(batch[ingest.IMAGE], batch[ingest.LABEL], stop=worker.stopping.is_set())
        position.step, worker.asked_to_stop = position.step + 1, outcome.stop
        worker.skipped = 0 if outcome.taken else worker.skipped + 1
        if not outcome.taken:
            _skip(worker, outcome.loss)
        else:
            position.losses = (position.losses[0] + outcome.loss, position.losses[1] + 1)
        for meter in (whole, lately):
            meter.add(outcome.loss if outcome.taken else None, wait)
        if position.step == 1:
            _check_first_loss(worker, outcome.loss)
        if position.step % config.log_steps == 0 or number == left:
            rate = float(worker.replica.optimizer.learning_rate)
            about = {"kind": "step", "step": position.step, "epoch": position.epoch + 1, "learning_rate": rate}
            worker.tell(about | lately.read())
            lately = Meter(config.batch_size)
        if number == left:
            break
        if outcome.stop or (config.checkpoint_steps and position.step % config.checkpoint_steps == 0):
            position.remaining = order.leave(shares, config.batch_size, number)
            if outcome.stop:
                return None
            save(worker)
    if position.step - first != left:
        raise StorageError(f"the input ended after {position.step - first} of {left} steps: has {config.data} changed?")
    return {
        "loss": position.mean_loss(),
        "images_per_second": whole.read()["images_per_second"],
        # The worst of all workers: the others wait for it, in the step, where it does not look like waiting.
        "input_wait": float(worker.replica.gather(round(1e6 * whole.input_wait())).max()) / 1e6,
        "memory_bytes": int(worker.replica.gather(find_peak_memory()).max()),
        "learning_rate": float(worker.replica.optimizer.learning_rate),
        "seconds": whole.seconds(),
    }


def _stream_share(worker: Worker, shares: list[order.Ranges]) -> Iterator[ingest.Batch]:
    job, config, replica = worker.job, worker.job.config, worker.replica
    epoch = worker.position.epoch
    reads = order.take_rows(order.plan_epoch(job.train_pieces, config.seed, epoch), shares[replica.rank])
    stage = ingest.Augmented(job.labels, config.augment, config.max_pixels, config.seed, epoch)
    size = order.local_batch_size(config.batch_size, replica.rank, replica.world)
    return ingest.stream(reads, job.columns, stage, size, worker.feeder)


def _skip(worker: Worker, loss: float) -> None:
    """Go on without a step whose loss or gradient is not finite; raise DivergedError when there are too many."""
    config, step, skipped = worker.job.config, worker.position.step, worker.skipped
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    if skipped > config.divergence.skip:
        rate = config.optimizer.learning_rate * worker.orders.rate_factor
        raise DivergedError(
            f"{what} at step {step}, and {skipped} steps in a row were of no use: lower optimizer.learning_rate "
            f"({rate:g}) or raise optimizer.warmup_steps, and go on with --resume"
        )
    worker.warn(f"{what} at step {step}: the step is left out")


def _check_first_loss(worker: Worker, loss: float) -> None:
    config = worker.job.config.loss
    usual = math.log(len(worker.job.labels))
    plain = config.kind == "cross_entropy" and config.reduction == "mean_valid" and config.class_weights == "none"
    if plain and loss > HIGH_FIRST_LOSS * usual:
        worker.warn(
            f"the first loss is {loss:.3g}, where a network that knows nothing has {usual:.3g}: its new layers start "
            "too large, which costs the first epoch"
        )
