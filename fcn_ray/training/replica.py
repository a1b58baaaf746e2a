"""The network and optimizer of one worker, as they are before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
import tensorflow as tf

from fcn_ray.bundle import load_bundle
from fcn_ray.config import TrainConfig, WorkersConfig
from fcn_ray.machine import count_cpus
from fcn_ray.models.fcn import build_fcn
from fcn_ray.models.surgery import graft
from fcn_ray.models.weights import load_backbone_weights
from fcn_ray.training.checkpoints import MODEL, OPTIMIZER, Arrays
from fcn_ray.training.preflight import Job
from fcn_ray.training.schedule import WarmupPoly


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

    def assign(self, arrays: Arrays) -> bool:
        """Inverse of `arrays`. False when they are of an optimizer without momentum, unlike this one: its starts at 0.

        Raises KeyError when another array is missing.
        """
        variables = self._variables()
        missing = {name for name in variables.keys() - arrays.keys() if name.endswith("_momentum")}
        for name in variables.keys() - missing:
            variables[name].assign(arrays[name])
        return not missing

    def _variables(self) -> dict[str, keras.Variable]:
        model = {f"{MODEL}{v.path}": v for v in self.model.variables}
        return model | {f"{OPTIMIZER}{i:04}/{v.path}": v for i, v in enumerate(self.optimizer.variables)}

    def sum_over_workers(self, counts: np.ndarray) -> np.ndarray:
        """The sum of integers of one shape over all workers, int64."""
        return np.asarray(self._add(tf.constant(counts, tf.int64)))

    def gather(self, value: int) -> np.ndarray:
        """The integer that each worker gives here, by rank; on every worker."""
        values = np.zeros(self.world, np.int64)
        values[self.rank] = value
        return self.sum_over_workers(values)

    @cached_property
    def _add(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def on_replica(value: tf.Tensor) -> tf.Tensor:
            # identity: an argument has no device yet, and the reduction asks for one
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        add: Callable[[tf.Tensor], tf.Tensor] = tf.function(
            lambda local: self.strategy.run(on_replica, args=(local,)), autograph=False
        )
        return add


def build_replica(job: Job, rank: int, world: int, *, local_world: int = 1, rate_factor: float = 1.0) -> Replica:
    """Strategy, network and optimizer of worker `rank` of `world`; the same bits on every worker.

    TF_CONFIG tells TensorFlow where the others are (Ray Train sets it). `local_world` workers share this machine's
    cores. `rate_factor` is on the learning rate: below 1 after the training has diverged.
    """
    config = job.config
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    use_devices(config.workers, max(1, count_cpus() // local_world))
    collective = tf.distribute.experimental.CollectiveCommunication
    options = tf.distribute.experimental.CommunicationOptions(
        # NCCL refuses two workers on one device.
        implementation=collective.NCCL if config.workers.gpus == 1 else collective.RING
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    start = _starting_weights(job)  # not in the scope: the strategy would mirror a network that is only read
    with strategy.scope():
        model, pretrained = build_network(job, start)
        optimizer = build_optimizer(config, job.steps_per_epoch, model, pretrained, rate_factor)
        optimizer.build(model.trainable_variables)
    return Replica(strategy, model, optimizer, rank, world, pretrained)


def use_devices(workers: WorkersConfig, threads: int) -> None:
    """Threads of this process (`workers.threads`, or else `threads`), and its one GPU, or none."""
    # The C library gives each large tensor back to the system, to have its pages zeroed for the next one: with whole
    # images that was up to half of a step. This allocator keeps them; its limit would be 64 GiB (DECISIONS 110).
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(memory >> 20))
    tf.config.threading.set_intra_op_parallelism_threads(workers.threads or threads)
    gpus = tf.config.list_physical_devices("GPU")[: 1 if workers.gpus else 0]
    tf.config.set_visible_devices(gpus, "GPU")  # the strategy makes a replica of every device that it sees
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)


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
    config: TrainConfig,
    steps_per_epoch: int,
    model: keras.Model,
    pretrained: frozenset[str],
    rate_factor: float = 1.0,
) -> keras.optimizers.Optimizer:
    """SGD with momentum, poly schedule and decay of kernels.

    Biases do not decay (release's recipe), nor the factors of normalisations, nor kernels that start as something else
    than noise around zero (bilinear, identity), nor `pretrained` layers, which learn at another rate than the decay
    knows.
    """
    settings = config.optimizer
    rate = settings.learning_rate * rate_factor
    optimizer = keras.optimizers.SGD(
        WarmupPoly(rate, config.epochs * steps_per_epoch, settings.warmup_steps, settings.power),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay or None,
        name="sgd",  # Keras would count the optimizers of a process, and a checkpoint holds the names of its variables
    )
    optimizer.exclude_from_weight_decay(
        var_list=[
            v
            for v in model.trainable_variables
            if len(v.shape) < 2 or layer_name(v) in pretrained or layer_name(v).startswith(("upsample_", "fuse_"))
        ]
    )
    return optimizer


def layer_name(variable: keras.Variable) -> str:
    """Name of the layer that the variable belongs to."""
    name: str = variable.path.partition("/")[0]
    return name
