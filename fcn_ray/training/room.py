"""Room for workers: what the nodes can hold, what other jobs leave of it, and waiting until it is enough."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fcn_ray import cluster
from fcn_ray.config import WorkersConfig
from fcn_ray.errors import IncompleteError, ResourceError
from fcn_ray.reports.progress import format_duration
from fcn_ray.training.preflight import Job

INGEST_CPUS = 1
"""CPUs that must be free beside the workers, to read and decode their input."""


def wait_for_room(job: Job) -> int:
    """Workers that the cluster has room for, once they are enough; ResourceError when that takes too long."""
    workers = job.config.workers
    least = least_count(job)
    deadline = time.monotonic() + workers.wait_seconds
    if workers.wait_seconds and count_room(job) < least:
        with _nodes_asked_for(workers):
            while count_room(job) < least and time.monotonic() < deadline:
                time.sleep(1.0)
    if (room := count_room(job)) >= least:
        return min(room, workers.count)
    waited = f" after {format_duration(workers.wait_seconds)}" if workers.wait_seconds else ""
    try:
        cluster.require(least, cpus=workers.cpus, gpus=workers.gpus, spare_cpus=INGEST_CPUS, purpose="workers")
    except ResourceError as error:
        raise ResourceError(f"{error}{waited}; workers.wait_seconds waits for nodes to come") from None
    return least


@contextmanager
def _nodes_asked_for(workers: WorkersConfig) -> Iterator[None]:
    """Tell an autoscaler, where there is one, what the workers need: it does not see who waits.

    The request is taken back at the end, or its nodes would stay when nobody needs them any more.
    """
    from ray.autoscaler.sdk import request_resources

    each = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    request_resources(bundles=[each] * workers.count + [{"CPU": INGEST_CPUS}])
    try:
        yield
    finally:
        request_resources(bundles=[])


def count_room(job: Job) -> int:
    """Workers that the nodes can hold, if nothing else runs."""
    workers = job.config.workers
    return cluster.count_room(cpus=workers.cpus, gpus=workers.gpus, spare_cpus=INGEST_CPUS)


def wait_again(job: Job) -> int:
    """As `wait_for_room`, for a training that has begun: what it lacks now it may have later."""
    try:
        return wait_for_room(job)
    except ResourceError as error:
        raise IncompleteError(f"{error}. The same command with --resume goes on from {job.config.out}") from error


def count_free(job: Job) -> int:
    """Workers that can join those of the group that runs: what other jobs hold is not free."""
    workers = job.config.workers
    return cluster.count_free(cpus=workers.cpus, gpus=workers.gpus)


def find_smaller(job: Job, count: int, error: BaseException) -> int | None:
    """Workers to go on with when `count` of them could not be started; None when it was something else, or the least.

    The nodes are there, or nothing would have been started: another job holds them, and may do so for long.
    """
    least = least_count(job)
    if count <= least or not cluster.is_start_timeout(error):
        return None
    return max(least, min(count - 1, count_free(job)))


def least_count(job: Job) -> int:
    """Workers that the job wants at least."""
    return job.config.workers.min_count or job.config.workers.count
