"""How a worker of a group begins: what it is told, where it is in the training, and who prepares its input."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from fcn_ray import storage
from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.training import order
from fcn_ray.training.checkpoints import Checkpoint, load_arrays
from fcn_ray.training.feeding import Feeder, deal_feeders
from fcn_ray.training.group import ABORT
from fcn_ray.training.preflight import Job
from fcn_ray.training.replica import Replica

Tell = Callable[[dict[str, Any]], None]
"""Sends one record to the driver: {"kind": "step" | "epoch" | "checkpoint" | "warning" | "stopped", ...}.

The input wait of a step's record is that of rank 0, that of an epoch's the worst of all workers."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the driver gives every worker of a group; the same for all of them."""

    job: Job
    resume_from: Checkpoint | None
    """The driver chooses it: workers that each looked for the newest could go on from different ones."""
    rate_factor: float
    tell: Tell
    bell: Any
    """Actor by which the driver asks for an end, see group.Bell."""
    nodes: Mapping[str, float]
    """CPUs of each node, by Ray's id of it."""


@dataclass
class Position:
    """How far the training is."""

    epoch: int
    """Epochs that are complete."""
    step: int
    """Steps that are complete."""
    remaining: order.Ranges
    """Rows of the current epoch's order that no step has used yet."""
    losses: tuple[float, int] = (0.0, 0)
    """Sum of the losses of the current epoch's steps so far, and how many they are; without those left out."""

    def mean_loss(self) -> float | None:
        """Of the current epoch so far; None when no step was taken."""
        total, count = self.losses
        return total / count if count else None


def whole_epoch(job: Job) -> order.Ranges:
    """The rows of a whole epoch: as many as fill its steps."""
    return ((0, job.steps_per_epoch * job.config.batch_size),)


def check_storage(job: Job) -> None:
    """Raise ConfigError, which is not tried again, when this worker's machine does not see the driver's folders."""
    uri = storage.join(job.config.out, "config.yaml")
    for seen in (uri, job.train_pieces[0].path):
        if not storage.is_file(seen):
            rank = ray.train.get_context().get_world_rank()
            raise ConfigError(
                f"worker {rank} on node {ray.util.get_node_ip_address()} does not see {seen}, which the driver sees: "
                "put `data` and `out` on storage that all nodes share"
            )


def find_position(replica: Replica, orders: Orders) -> Position:
    """Where this group begins; the replica has the state of that place."""
    chosen = orders.resume_from
    if chosen is None:
        return Position(0, 0, whole_epoch(orders.job))
    arrays = load_arrays(chosen)
    if arrays is None:
        raise StorageError(f"worker {replica.rank} cannot read {chosen.folder}: is `out` on shared storage?")
    if not replica.assign(arrays) and replica.rank == 0:
        message = f"{chosen.folder} is of a training without optimizer.momentum: it starts at 0"
        orders.tell({"kind": "warning", "step": chosen.step, "message": message})
    total, count = chosen.metrics.get("losses", (0.0, 0))
    return Position(chosen.epoch, chosen.step, chosen.remaining or whole_epoch(orders.job), (total, count))


def find_feeder(replica: Replica, orders: Orders) -> Feeder:
    """What prepares this worker's input; all workers deal alike, from where each of them is."""
    nodes = ["", *sorted(orders.nodes)]  # "" for a node that came after the driver had looked
    here = ray.get_runtime_context().get_node_id()
    homes = replica.gather(nodes.index(here) if here in orders.nodes else 0)
    return deal_feeders(orders.nodes, [nodes[i] for i in homes], orders.job.config.workers.cpus)[replica.rank]


def listen(bell: Any, stopping: threading.Event) -> None:
    """Wait, in a thread of its own, for the driver to ask for an end; one at once is the process's."""
    asked = 0
    try:
        while asked < ABORT:
            asked = ray.get(bell.wait.remote(asked))
            stopping.set()
    except ray.exceptions.RayError:
        return  # the driver is gone, and with it the reason to listen
    os._exit(1)  # this thread is the only one that does not wait for something
