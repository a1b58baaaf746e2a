"""From the best checkpoint to the bundle: the network is built anew and scored again in fresh processes first.

What training measured, it measured in a process that had trained for days. What inference loads must be as good when
nothing is left of that process: so the bundle's metrics are those of the second measurement.
"""

from __future__ import annotations

import heapq
import importlib.metadata
import math
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from fcn_ray import cluster
from fcn_ray.bundle import Bundle, TakenError, load_bundle, save_bundle
from fcn_ray.config import Precision
from fcn_ray.errors import BundleError, IncompleteError, StorageError, redact
from fcn_ray.machine import count_cpus
from fcn_ray.models.metrics import Confusion, confusion_matrix, scores
from fcn_ray.training.checkpoints import MODEL, Checkpoint, load_arrays, load_best
from fcn_ray.training.feeding import Feeder
from fcn_ray.training.patience import Hear, Patience
from fcn_ray.training.preflight import Job

if TYPE_CHECKING:
    import keras

    from fcn_ray.training.validation import Sample

TOLERANCE = 0.01
"""Of the pixel accuracy, between the two measurements: training may have rounded to bfloat16, the bundle is float32.
(Not of the mean IoU: a single pixel of a class that no label holds changes it by a whole class.)"""

COST = 0.001
"""Of the mean IoU, that bfloat16 may cost a network (issue 6)."""

LEAST_IMAGES = 16
"""That a process scores: fewer take less time than to start it."""

RESTARTS = 3
"""Of a process that dies while it scores or writes."""

EXAMPLES = 4
"""Best and worst validation images that are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A validation image and how well it was predicted."""

    mean_iou: float
    sample: Sample


@dataclass(frozen=True, slots=True, eq=False)
class Rescored:
    """A share of the validation set, or all of it, measured in a fresh process."""

    confusion: Confusion
    best: tuple[Example, ...]
    worst: tuple[Example, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Promotion:
    """The bundle that came of a training, and what it was promoted for."""

    bundle: Bundle
    checkpoint: Checkpoint
    rescored: Rescored | None
    """None without a validation set."""


def promote(job: Job, processes: int, hear: Hear) -> Promotion:
    """Score the best checkpoint that can be read in fresh `processes`, and write it as a bundle; Ray must be connected.

    A bundle is never overwritten: when the run was trained on after it had one, the new one gets its epoch's name.
    Raises StorageError without a readable checkpoint, BundleError when the two measurements do not agree, and
    IncompleteError when the processes find no room for too long or die; `hear` is told when they wait.
    """
    found = load_best(job.config.out)
    if found is None:
        raise StorageError(f"no checkpoint in {job.config.out} can be read back: there is nothing to make a bundle of")
    checkpoint, workers = found[0], job.config.workers
    images = sum(piece.n_rows for piece in job.val_pieces)
    world = min(processes, max(1, images // LEAST_IMAGES))
    fresh = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)
    promoters = [fresh(Promoter).remote(job, checkpoint, rank, world) for rank in range(world)]
    patience = Patience(job, checkpoint, hear)
    try:
        rescored = _merge(_score(promoters, patience)) if images else None
        if rescored:
            check_agreement(checkpoint, scores(rescored.confusion).pixel_accuracy)
        metrics = scores(rescored.confusion).to_dict() if rescored else {}
        writing = promoters[0].write.remote(metrics, _command())
        bundle = ray.get(patience.wait([writing], [promoters[0].begin.remote()]))
    except ray.exceptions.RayActorError as error:
        raise IncompleteError(
            f"a process that makes the bundle of {checkpoint.folder} died {RESTARTS + 1} times, the last time with: "
            f"{cluster.last_line(error)}. The same command with --resume goes on from {job.config.out}"
        ) from error
    finally:
        for promoter in promoters:
            ray.kill(promoter)
    return Promotion(bundle, checkpoint, rescored)


def _score(promoters: list[Any], patience: Patience) -> list[Rescored]:
    """What each measured. All but one, which is left in the list to write, end as soon as they are done.

    They hold CPUs or GPUs: when there is room for one only, the next one starts when it has ended.
    """
    begun = {promoter: promoter.begin.remote() for promoter in promoters}
    running = {promoter.score.remote(): promoter for promoter in promoters}
    found = []
    while running:
        done = patience.wait(list(running), [begun[promoter] for promoter in running.values()])
        found.append(ray.get(done))
        promoter = running.pop(done)
        if running:
            promoters.remove(promoter)
            ray.kill(promoter)
    return found


def _command() -> str:
    """How this process was started: what to type to train again."""
    program, *arguments = sys.argv
    name = Path(program).name
    return redact(shlex.join(["fcn-ray" if name == "__main__.py" else name, *arguments]))


def check_agreement(checkpoint: Checkpoint, pixel_accuracy: float) -> None:
    """Raise BundleError when a fresh process finds another pixel accuracy than the training did."""
    before = checkpoint.metrics.get("val", {}).get("pixel_accuracy")
    if before is None or math.isnan(pixel_accuracy) or abs(before - pixel_accuracy) <= TOLERANCE:
        return
    raise BundleError(
        f"{checkpoint.folder} had a pixel accuracy of {before:.4f} in training, but has {pixel_accuracy:.4f} in a "
        "fresh process: no bundle is made of it. Has the validation set changed since then?"
    )


class Promoter:
    """A process of its own with the checkpoint's network: scores one of `world` shares, and writes the bundle."""

    def __init__(self, job: Job, checkpoint: Checkpoint, rank: int, world: int) -> None:
        self._job, self._checkpoint, self._rank, self._world = job, checkpoint, rank, world

    @cached_property
    def _model(self) -> keras.Model:  # not in the constructor, whose errors Ray does not hand on
        from fcn_ray.training.replica import use_devices

        use_devices(self._job.config.workers, max(1, count_cpus() // self._world))
        return load_network(self._job, self._checkpoint)

    def begin(self) -> None:
        """Nothing: once this is done, the process has found room."""

    def score(self) -> Rescored:
        """Measure the share of the validation set."""
        import tensorflow as tf

        from fcn_ray.models.prediction import build_mask_fn
        from fcn_ray.training.validation import predict_share

        job, k = self._job, len(self._job.labels)
        find_masks = tf.function(build_mask_fn(self._model, job.preprocessing), reduce_retracing=True, autograph=False)
        total = np.zeros((k, k + 1), np.int64)
        best: list[Example] = []
        worst: list[Example] = []
        for sample in predict_share(find_masks, job, self._rank, self._world, Feeder(node="", tasks=1)):
            counts = confusion_matrix(sample.label, sample.mask, k, job.labels.ignore_id)
            total += counts
            mean_iou = scores(counts).mean_iou
            if not math.isnan(mean_iou):
                best, worst = (
                    _extremes([*best, Example(mean_iou, sample)]),
                    _extremes([*worst, Example(mean_iou, sample)], -1),
                )
        return Rescored(total, tuple(best), tuple(worst))

    def write(self, metrics: dict[str, Any], command: str) -> Bundle:
        """Save the network as a bundle, and read it back."""
        return write_bundle(self._model, self._job, self._checkpoint, metrics, command)


def _extremes(examples: Iterable[Example], sign: int = 1) -> list[Example]:
    """The EXAMPLES best, or with `sign` -1 the worst, first."""
    return heapq.nlargest(EXAMPLES, examples, key=lambda example: (sign * example.mean_iou, example.sample.key))


def _merge(shares: list[Rescored]) -> Rescored:
    total = np.sum([share.confusion for share in shares], axis=0)
    best = _extremes(example for share in shares for example in share.best)
    worst = _extremes((example for share in shares for example in share.worst), -1)
    return Rescored(total, tuple(best), tuple(worst))


def write_bundle(model: keras.Model, job: Job, checkpoint: Checkpoint, metrics: dict[str, Any], command: str) -> Bundle:
    """Save the checkpoint's network as a bundle, and read it back."""
    metadata = {
        "data": {"uri": job.config.data, "digest": job.data_digest},
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "metrics": metrics,
        "config": job.config.model_dump(mode="json"),
        "class_weights": job.class_weights,
        "command": command,
        "trained_with": {name: importlib.metadata.version(name) for name in ("tensorflow", "ray", "pyarrow")},
    }
    parts = (model, job.spec, job.labels, job.preprocessing, metadata, find_precision(checkpoint, metrics))
    folder = f"{job.config.out}/bundle"
    try:
        saved = save_bundle(folder, *parts)
    except TakenError:
        saved = save_bundle(f"{folder}-epoch-{checkpoint.epoch}", *parts)
    return load_bundle(saved.folder)


def find_precision(checkpoint: Checkpoint, metrics: dict[str, Any]) -> Precision:
    """In which precision a bundle with these `metrics`, measured in float32, is as good: bfloat16 when the training
    measured in it, and found less than COST less."""
    before, now = checkpoint.metrics.get("val", {}).get("mean_iou"), metrics.get("mean_iou")
    if checkpoint.metrics.get("precision") != "bfloat16" or before is None or now is None:
        return "float32"
    return "bfloat16" if now - before < COST else "float32"


def load_network(job: Job, checkpoint: Checkpoint) -> keras.Model:
    """The network with the checkpoint's weights. Raises StorageError when they cannot be read."""
    from fcn_ray.models.fcn import build_fcn

    arrays = load_arrays(checkpoint)
    if arrays is None:
        raise StorageError(f"{checkpoint.folder} cannot be read any more: is `out` on shared storage?")
    model = build_fcn(job.spec, seed=None)
    for variable in model.variables:
        variable.assign(arrays[f"{MODEL}{variable.path}"])
    return model
