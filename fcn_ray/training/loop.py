"""What one Ray Train worker does, top to bottom: build the replica, go through the epochs, keep checkpoints.

Keras 3's `fit` does not run under MultiWorkerMirroredStrategy; `strategy.run` with a Keras optimizer does, with public
names only. One worker is one replica. The loss of a step is that of the valid pixels of all workers, so that W workers
take exactly the step that one worker takes on the same images (fcn.md R11).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import ray.train
import tensorflow as tf

from fcn_ray.bundle import load_bundle, save_bundle
from fcn_ray.config import TrainConfig
from fcn_ray.errors import BundleError, DivergedError, StorageError
from fcn_ray.images.geometry import pad_batch, padded_size
from fcn_ray.models.fcn import build_fcn
from fcn_ray.models.losses import build_loss
from fcn_ray.models.metrics import Scores, confusion_matrix, scores
from fcn_ray.models.prediction import build_predict_fn
from fcn_ray.models.preprocessing import normalise
from fcn_ray.models.surgery import graft
from fcn_ray.models.weights import load_backbone_weights
from fcn_ray.training import ingest
from fcn_ray.training.checkpoints import (
    Arrays,
    Checkpoint,
    load_arrays,
    load_best,
    remove_old,
    save_checkpoint,
)
from fcn_ray.training.preflight import Job
from fcn_ray.training.schedule import WarmupPoly

Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

Tell = Callable[[dict[str, Any]], None]
"""Sends one record to the driver: {"kind": "step" | "epoch" | "bundle", ...}."""


@dataclass
class Replica:
    """The network and optimizer of one worker, kept equal on all of them by the strategy."""

    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    rank: int
    world: int
    pretrained: frozenset[str] = frozenset()
    """Names of the layers that have learned before: they take smaller steps."""

    def arrays(self) -> Arrays:
        """Every variable by name: the whole state of training."""
        return {name: np.asarray(variable.value) for name, variable in self._variables().items()}

    def assign(self, arrays: Arrays) -> None:
        """Inverse of `arrays`."""
        for name, variable in self._variables().items():
            variable.assign(arrays[name])

    def assign_weights(self, arrays: Arrays) -> None:
        """Take the network's variables only."""
        for name, variable in self._variables().items():
            if name.startswith("model/"):
                variable.assign(arrays[name])

    def _variables(self) -> dict[str, keras.Variable]:
        model = {f"model/{v.path}": v for v in self.model.variables}
        return model | {f"optimizer/{i:04}/{v.path}": v for i, v in enumerate(self.optimizer.variables)}


def run_worker(job: Job, resume_from: Checkpoint | None, tell: Tell) -> None:
    """The worker's life: from a checkpoint, or the start, to the last epoch, then the bundle.

    The driver chooses the checkpoint: workers that each looked for the newest could go on from different ones.
    """
    config = job.config
    replica = build_replica(job)
    step = build_step(replica, job)
    predict = tf.function(build_predict_fn(replica.model, job.preprocessing), reduce_retracing=True, autograph=False)
    first_epoch, steps_done = 0, 0
    if resume_from:
        arrays = load_arrays(resume_from)
        if arrays is None:
            raise StorageError(f"worker {replica.rank} cannot read {resume_from.folder}: is `out` on shared storage?")
        replica.assign(arrays)
        first_epoch, steps_done = resume_from.epoch, resume_from.step
    for epoch in range(first_epoch, config.epochs):
        metrics: dict[str, Any] = dict(train_epoch(replica, step, job, epoch, tell))
        steps_done += job.steps_per_epoch
        due = (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs
        result = validate(replica, predict, job) if job.val_pieces and due else None
        metrics |= {"epoch": epoch + 1, "step": steps_done} | ({"val": result.to_dict()} if result else {})
        if replica.rank == 0:
            score = result.mean_iou if result else None
            save_checkpoint(
                config.out,
                Checkpoint("", epoch + 1, steps_done, score, job.settings, metrics),
                replica.arrays(),
            )
            remove_old(config.out, config.keep_checkpoints)
            tell({"kind": "epoch", **metrics})
        ray.train.report({"epoch": epoch + 1, "loss": metrics["loss"]})
    if replica.rank == 0:
        publish(replica, job, tell)


def build_replica(job: Job) -> Replica:
    """Strategy, network and optimizer of this worker; the same bits on every worker."""
    config = job.config
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(
        config.workers.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    )
    gpus = tf.config.list_physical_devices("GPU")[: 1 if config.workers.gpus else 0]
    tf.config.set_visible_devices(gpus, "GPU")  # the strategy makes a replica of every device that it sees
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    collective = tf.distribute.experimental.CollectiveCommunication
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=collective.NCCL if config.workers.gpus else collective.RING
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    start = _starting_weights(job)  # not in the scope: the strategy would mirror a network that is only read
    with strategy.scope():
        model, pretrained = build_network(job, start)
        optimizer = build_optimizer(config, job.steps_per_epoch, model, pretrained)
        optimizer.build(model.trainable_variables)
    return Replica(strategy, model, optimizer, rank, world, pretrained)


def _starting_weights(job: Job) -> Arrays:
    """Those of the bundle to start from, by path; none without one."""
    if job.config.model.start is None:
        return {}
    network = load_bundle(job.config.model.start).build()
    return {weight.path: keras.ops.convert_to_numpy(weight) for weight in network.weights}


def build_network(job: Job, start: Arrays) -> tuple[keras.Model, frozenset[str]]:
    """The network as it is before the first step, and the names of its layers that have learned before."""
    settings = job.config.model
    model = build_fcn(job.spec, precision=job.config.precision, seed=job.config.seed)
    learned: list[str] = []
    if start:
        learned = graft(model, start, settings.backbone, settings.scales)
    elif settings.weights:
        learned = load_backbone_weights(model, settings.weights, settings.backbone, settings.scales)
    return model, frozenset(learned)


def build_optimizer(
    config: TrainConfig, steps_per_epoch: int, model: keras.Model, pretrained: frozenset[str]
) -> keras.optimizers.Optimizer:
    """SGD with momentum, poly schedule and decay of kernels.

    Biases do not decay (release's recipe), nor the factors of normalisations, nor kernels that start as something else
    than noise around zero (bilinear, identity), nor `pretrained` layers, which learn at another rate than the decay
    knows.
    """
    settings = config.optimizer
    optimizer = keras.optimizers.SGD(
        WarmupPoly(settings.learning_rate, config.epochs * steps_per_epoch, settings.warmup_steps, settings.power),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay or None,
    )
    optimizer.exclude_from_weight_decay(
        var_list=[
            v
            for v in model.trainable_variables
            if len(v.shape) < 2 or _layer_name(v) in pretrained or _layer_name(v).startswith(("upsample_", "fuse_"))
        ]
    )
    return optimizer


def build_step(replica: Replica, job: Job) -> Step:
    """Function of this worker's images (N, H, W, 3) and labels (N, H, W), both uint8, that takes one step of all.

    Returns the loss over all workers' valid pixels, float32.
    """
    model, optimizer = replica.model, replica.optimizer
    loss_of = build_loss(job.config.loss, len(job.labels), job.labels.ignore_id, job.class_weights)
    # SGD is linear in the gradient: a factor on it is one on the rate.
    slow = job.config.optimizer.backbone_rate
    factors = [slow if _layer_name(v) in replica.pretrained else 1.0 for v in model.trainable_variables]

    def on_replica(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        with tf.GradientTape() as tape:
            logits = model(normalise(images, job.preprocessing), training=True)
            local = loss_of.terms(labels, logits)
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(local))
            # The value of the sum over the workers with the gradient of this one's part: apply_gradients adds up the
            # parts. (The gradient of all_reduce would add them up once more.)
            loss = loss_of.combine(total + (local - tf.stop_gradient(local)))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        gradients = [gradient * factor for gradient, factor in zip(gradients, factors, strict=True)]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return replica.strategy.run(on_replica, args=(images, labels))

    pixels = (None, None, None)
    signature = [tf.TensorSpec((*pixels, 3), tf.uint8), tf.TensorSpec(pixels, tf.uint8)]
    compiled: Step = tf.function(step, input_signature=signature, autograph=False)
    return compiled


def _layer_name(variable: keras.Variable) -> str:
    name: str = variable.path.partition("/")[0]
    return name


def train_epoch(replica: Replica, step: Step, job: Job, epoch: int, tell: Tell) -> dict[str, float]:
    """All steps of one epoch; mean loss, images/s and the share of time spent waiting for input."""
    config = job.config
    size = config.batch_size // replica.world
    rows = job.steps_per_epoch * size
    reads = ingest.plan_epoch(job.train_pieces, config.seed, epoch)
    share = ingest.take_share(reads, replica.rank * rows, (replica.rank + 1) * rows)
    stage = ingest.Augmented(job.labels, config.augment, config.max_pixels, config.seed, epoch)
    losses: list[float] = []
    waited, start = 0.0, time.monotonic()
    for number, batch, wait in _timed(ingest.stream(share, job.columns, stage, size)):
        waited += wait
        loss = float(step(batch[ingest.IMAGE], batch[ingest.LABEL]))
        if not np.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {epoch * job.steps_per_epoch + number + 1}: lower optimizer.learning_rate "
                f"({config.optimizer.learning_rate:g}) or raise optimizer.warmup_steps, and go on with --resume"
            )
        losses.append(loss)
        if replica.rank == 0:
            done = epoch * job.steps_per_epoch + number + 1
            tell({"kind": "step", "step": done, "epoch": epoch + 1, "loss": loss, "images": config.batch_size})
    seconds = time.monotonic() - start
    images = len(losses) * config.batch_size
    return {
        "loss": float(np.mean(losses)),
        "images_per_second": images / seconds,
        "input_wait": waited / seconds,
        "seconds": seconds,
    }


def _timed(batches: Iterator[ingest.Batch]) -> Iterator[tuple[int, ingest.Batch, float]]:
    number = 0
    while True:
        start = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield number, batch, time.monotonic() - start
        number += 1


def validate(replica: Replica, predict: Callable[..., Any], job: Job) -> Scores:
    """The four FCN metrics over the whole validation set, each image at its own size; the same on every worker."""
    n_rows = sum(piece.n_rows for piece in job.val_pieces)
    start, stop = (n_rows * r // replica.world for r in (replica.rank, replica.rank + 1))
    share = ingest.take_share(ingest.plan_pass(job.val_pieces), start, stop)
    total = np.zeros((len(job.labels), len(job.labels) + 1), np.int64)
    for batch in ingest.stream(share, job.columns, None, batch_size=8) if share else ():
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            image, label = ingest.decode_sample(row, job.labels, job.config.max_pixels)
            height, width = label.shape
            padded = pad_batch([image], *padded_size(height, width, job.spec.grid))
            sizes, cores = np.array([[height, width]], np.int32), np.array([[0, 0, height, width]], np.int32)
            mask = predict(padded, sizes, cores)[0][0, :height, :width]
            total += confusion_matrix(label, np.asarray(mask), len(job.labels), job.labels.ignore_id)
    return scores(_sum_over_workers(replica.strategy, total))


def _sum_over_workers(strategy: tf.distribute.Strategy, counts: np.ndarray) -> np.ndarray:
    def on_replica(value: tf.Tensor) -> tf.Tensor:
        # identity: an argument has no device yet, and the reduction asks for one
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

    add = tf.function(lambda local: strategy.run(on_replica, args=(local,)), autograph=False)
    return np.asarray(add(tf.constant(counts, tf.int64)))


def publish(replica: Replica, job: Job, tell: Tell) -> None:
    """Write the best checkpoint's weights as the bundle (rank 0).

    A bundle is never overwritten: when the run was trained on after it had one, the new one gets its epoch's name.
    """
    found = load_best(job.config.out)
    if found is None:
        raise StorageError(f"no checkpoint in {job.config.out} can be read back: there is nothing to make a bundle of")
    best, arrays = found
    replica.assign_weights(arrays)
    metadata = {
        "data": {"uri": job.config.data, "digest": job.data_digest},
        "epoch": best.epoch,
        "metrics": best.metrics.get("val", {}),
        "config": job.config.model_dump(mode="json"),
        "class_weights": job.class_weights,
    }
    parts = (replica.model, job.spec, job.labels, job.preprocessing, metadata)
    try:
        bundle = save_bundle(f"{job.config.out}/bundle", *parts)
    except BundleError:
        bundle = save_bundle(f"{job.config.out}/bundle-epoch-{best.epoch}", *parts)
    tell(
        {
            "kind": "bundle",
            "folder": bundle.folder,
            "digest": bundle.digest,
            "epoch": best.epoch,
            "metrics": best.metrics,
        }
    )
