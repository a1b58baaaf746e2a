"""One group of Ray Train workers, seen from the driver: start it, hear its records, ask it to stop.

A group lives until the training is done, one of its workers dies, or it is asked to stop. What happens next is decided
in job.py: a group knows nothing of the one before.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fcn_ray import cluster, storage
from fcn_ray.training.checkpoints import Checkpoint
from fcn_ray.training.preflight import Job

Hear = Callable[[dict[str, Any]], None]
"""Takes a record; it must not raise."""


STOP, ABORT = 1, 2
"""What a bell may ask for: a checkpoint and an end, or an end at once."""


class Bell:
    """Actor that tells the workers what the driver asks for."""

    def __init__(self) -> None:
        self._asked = 0
        self._changed = asyncio.Condition()

    async def ring(self, what: int) -> None:
        """Ask for STOP or ABORT."""
        async with self._changed:
            self._asked = max(self._asked, what)
            self._changed.notify_all()

    async def wait(self, known: int) -> int:
        """What is asked for, as soon as it is more than `known`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._asked > known)
            return self._asked


class Group:
    """A group of `count` workers that starts at once, in a thread: signals must reach the caller's.

    (Ray Train would take SIGINT and SIGTERM for itself.)
    """

    def __init__(self, job: Job, count: int, resume_from: Checkpoint | None, rate_factor: float, hear: Hear) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._bell = ray.remote(num_cpus=0, scheduling_strategy=here)(Bell).remote()
        self._listener = Listener(hear)
        self._raised: list[BaseException] = []
        # Not Thread.join: interrupted by a signal, Python 3.11 takes the thread for ended from then on.
        self._ended = threading.Event()
        orders = {"job": job, "resume_from": resume_from, "rate_factor": rate_factor, "bell": self._bell}
        orders["nodes"] = cluster.count_cpus()
        threading.Thread(target=self._run, args=(job, count, orders), daemon=True).start()

    def _run(self, job: Job, count: int, orders: dict[str, Any]) -> None:
        try:
            with self._listener as tell:
                fit(job, count, orders | {"tell": tell})
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            self._raised.append(error)
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """True when the group has ended within `seconds`; raises what ended it."""
        if not self._ended.wait(seconds):
            return False
        if self._raised:
            raise self._raised[0]
        return True

    def ask_to_stop(self) -> None:
        """After the step at hand: a checkpoint, a record of kind "stopped", and an end without error."""
        self._bell.ring.remote(STOP)

    def abort(self) -> None:
        """End it without a checkpoint: a worker dies, and the group with it. For workers that do not stop."""
        self._bell.ring.remote(ABORT)


def fit(job: Job, count: int, orders: dict[str, Any]) -> None:
    """Run `count` workers to their end. Raises what Ray Train raises when one of them fails."""
    from ray.train.tensorflow import TensorflowTrainer  # imports TensorFlow: 7 s that a refused job need not wait

    workers = job.config.workers
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    with _own_folder(job.config.out) as folder:
        TensorflowTrainer(
            work,
            train_loop_config=orders,
            scaling_config=ScalingConfig(num_workers=count, use_gpu=workers.gpus > 0, resources_per_worker=resources),
            run_config=RunConfig(
                name=f"run-{time.time_ns()}",
                storage_path=folder,
                # Whether to start again, from where and with how many, is decided by the driver (job.py).
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            ),
        ).fit()


@contextmanager
def _own_folder(out: str) -> Iterator[str]:
    """Where Ray keeps what it notes of a training; nothing of ours rests on it.

    Ray does not read the address of an S3 server from the environment as we do, so beside an `out` in an object store
    it is a folder of the machine, which goes with the group.
    """
    if storage.is_local(out):
        yield storage.join(out, "ray")
        return
    with tempfile.TemporaryDirectory(prefix="fcn_ray-", ignore_cleanup_errors=True) as folder:
        yield folder  # no other user of the machine can have made it before


def work(orders: dict[str, Any]) -> None:
    """Entry point on a worker; TensorFlow and Keras are imported there, not on the driver."""
    from fcn_ray.training.loop import run_worker
    from fcn_ray.training.startup import Orders

    try:
        run_worker(Orders(**orders))
    except Exception as error:
        own = cluster.find_own_error(error)  # looked for here: causes do not survive the way to the driver
        if own is not None:
            raise own from None
        raise


class Listener:
    """Carries the workers' records to a function on the driver, from any node. Lives on the driver's node."""

    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Hear:
        self._thread.start()
        put: Hear = self._queue.put_nowait
        return put

    def __exit__(self, *_: object) -> None:
        with suppress(ray.exceptions.RayError):  # then the thread has ended, too
            self._queue.put_nowait(None)  # behind all records
        self._thread.join()
        self._queue.shutdown(force=True)

    def _listen(self) -> None:
        """Asks once for each record and waits: a question every so often would take the workers' cores."""
        with suppress(ray.exceptions.RayError):  # the queue is gone: whoever tells something next raises that
            while (record := self._queue.get()) is not None:
                self._hear(record)
