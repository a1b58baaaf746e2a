"""Connect to Ray: join the cluster that there is, or start one on this machine, without the noise of either library."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import ray

from fcn_ray import machine, storage
from fcn_ray.errors import ConfigError, FcnRayError, ResourceError, refuse_secrets
from fcn_ray.tables.pickles import check_environment

T = TypeVar("T")

WORKER_ENVIRONMENT: Mapping[str, str] = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
"""Set in every Ray process of a job, unless the job's own environment sets the same name."""

NODE_ENVIRONMENT: Mapping[str, str] = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
"""Set for a Ray that is started here. After its default, a second, processes end between two chunks, and with few cores
each chunk would wait for new ones, which import for seconds."""


FLOORS = {"ray": (2, 60), "keras": (3, 15), "pillow": (13, 0), "pyarrow": (24, 0), "tensorflow": (2, 21)}
"""Oldest versions of what reads strangers' bytes: those of pyproject.toml, which an install may have gone below."""


def check_versions() -> None:
    """Raise ConfigError when an installed package is older than its floor."""
    for name, floor in FLOORS.items():
        with suppress(PackageNotFoundError):  # as tensorflow-cpu, for example: an import will tell what is missing
            numbers = tuple(int(number) for number in re.findall(r"\d+", version(name))[:2])
            if numbers < floor:
                least = ".".join(map(str, floor))
                raise ConfigError(f"{name} {version(name)} has known holes: install {least} or newer, on every node")


def connect(address: str | None = None, *, cpus: float = 0, verbose: bool = False) -> None:
    """Join the cluster at `address` or RAY_ADDRESS; without either start Ray here, with at least `cpus` CPUs.

    A single machine may promise more CPUs than it has cores: reading and decoding share them with the model, and a job
    that asks for two workers on two cores must still be able to read. Does nothing when Ray is already connected.
    Raises ConfigError where Ray would run code that comes with data, or a package has known holes.
    """
    check_environment()
    check_versions()
    silence(verbose)
    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    _init(address, cpus, verbose)
    if before not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which exits with code 15


def find_address(address: str | None) -> str | None:
    """The cluster that a job joins; None when it starts Ray on this machine."""
    return address or os.environ.get("RAY_ADDRESS")


def _init(address: str | None, cpus: float, verbose: bool) -> None:
    environment = {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
    environment |= {name: os.environ[name] for name in storage.SETTINGS if name in os.environ}
    refuse_secrets(environment)  # Ray's dashboard shows them
    level = logging.INFO if verbose else logging.ERROR
    where = find_address(address)
    if where:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
        taken = job.get("env_vars") or {}  # of a submitted job: Ray refuses to set the same name twice
        ours = {name: value for name, value in environment.items() if name not in taken}
        try:
            ray.init(address=where, runtime_env={"env_vars": ours}, log_to_driver=verbose, logging_level=level)
        except (ConnectionError, ValueError) as error:
            raise ResourceError(
                f"no Ray cluster answers at {where}: {error}. Unset RAY_ADDRESS to start Ray on this machine"
            ) from error
        return
    count = max(machine.count_cpus(), int(cpus + 0.999))
    # Inherited, not a runtime_env: Ray would start every worker twice, without it and with it.
    with _environment({**environment, **NODE_ENVIRONMENT}):
        ray.init(
            address="local",  # or Ray would look for one that was started here before, and refuse the number of CPUs
            num_cpus=count,
            include_dashboard=False,
            log_to_driver=verbose,
            logging_level=level,
        )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with `values`, for the processes that it starts meanwhile."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def silence(verbose: bool = False) -> None:
    """Keep Ray's and TensorFlow's own progress and log lines out of the driver's output, unless `verbose`."""
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)


def require(count: int, *, cpus: float, gpus: float, spare_cpus: float, purpose: str) -> None:
    """Raise ResourceError unless the nodes that are there can hold `count` processes of `cpus` and `gpus` each.

    Counted node by node, since a process cannot be spread over two, and with `spare_cpus` left for what feeds them.
    Without this check Ray would wait, in silence and for ever.
    """
    nodes = _alive()
    room = _fits(nodes, cpus, gpus)
    present = ray.cluster_resources()
    cluster_cpus, cluster_gpus = present.get("CPU", 0.0), present.get("GPU", 0.0)
    found = f"the Ray cluster has {cluster_cpus:g} CPUs and {cluster_gpus:g} GPUs on {len(nodes)} nodes"
    way_out = "ask for less, add nodes, or join a larger cluster with --address"
    if room < count:
        each = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise ResourceError(f"{count} {purpose} of {each} each do not fit, {found} with room for {room}: {way_out}")
    if cluster_cpus < count * cpus + spare_cpus:
        raise ResourceError(f"{count} {purpose} leave no {spare_cpus:g} CPUs to read and decode, {found}: {way_out}")


def require_memory(count: int, memory: int, *, cpus: float, gpus: float, spare: int, purpose: str) -> None:
    """The same for the bytes of `memory` that each of the processes reserves, with `spare` left for what feeds them, on
    one of the nodes that have a CPU."""
    nodes = _alive()
    room, present = _fits(nodes, cpus, gpus, memory), sum(node.get("memory", 0.0) for node in nodes)
    found = f"the Ray cluster has {_gigabytes(present)} on {len(nodes)} nodes"
    if room < count:
        raise ResourceError(
            f"{count} {purpose} with {_gigabytes(memory)} of memory each do not fit, {found} with room for {room}"
        )
    beside = [
        _fits([*nodes[:i], {**node, "memory": node.get("memory", 0.0) - spare}, *nodes[i + 1 :]], cpus, gpus, memory)
        for i, node in enumerate(nodes)
        if node.get("CPU", 0.0) and node.get("memory", 0.0) >= spare
    ]
    if max(beside, default=0) < count:
        left = f"{_gigabytes(spare)} of memory on one node to read, decode and store"
        raise ResourceError(f"{count} {purpose} leave no {left}, {found}")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def count_room(*, cpus: float, gpus: float, spare_cpus: float, memory: float = 0) -> int:
    """Processes of `cpus`, `gpus` and `memory` each that the nodes can hold, if nothing else runs, with `spare_cpus`
    left over."""
    nodes = _alive()
    cluster_cpus = sum(node.get("CPU", 0.0) for node in nodes)
    return max(0, min(_fits(nodes, cpus, gpus, memory), int((cluster_cpus - spare_cpus) / cpus + 1e-9)))


def count_free(*, cpus: float, gpus: float) -> int:
    """Processes of `cpus` and `gpus` each for which nobody holds the resources now; the most, if nodes share them."""
    free = ray.available_resources()
    fits = int(free.get("CPU", 0.0) / cpus + 1e-9)
    return min(fits, int(free.get("GPU", 0.0) / gpus + 1e-9)) if gpus else fits


def count_cpus() -> dict[str, float]:
    """CPUs of each node that is there, by Ray's id of it."""
    return {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]}


def _alive() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(nodes: list[Mapping[str, float]], cpus: float, gpus: float, memory: float = 0) -> int:
    """Counted node by node, since a process cannot be spread over two."""
    room = 0
    for node in nodes:
        fits = [int(node.get("CPU", 0.0) / cpus + 1e-9)]
        fits += [_gpu_shares(node, gpus)] if gpus else []
        fits += [int(node.get("memory", 0.0) / memory)] if memory else []
        room += min(fits)
    return room


def count_gpu_shares(*, gpus: float) -> int:
    """Processes of `gpus` each that the GPUs of all nodes can hold."""
    return sum(_gpu_shares(node["Resources"], gpus) for node in ray.nodes() if node["Alive"])


def _gpu_shares(node: Mapping[str, float], gpus: float) -> int:
    """On one node. A share is of a single GPU: two GPUs hold four processes of 0.4, not five."""
    present = node.get("GPU", 0.0)
    return int(present) * int(1 / gpus + 1e-9) if gpus < 1 else int(present / gpus + 1e-9)


def count_nodes(*, cpus: float, memory: float = 0) -> int:
    """Nodes that can run work that reserves `cpus` and `memory`."""
    return sum(1 for node in _alive() if node.get("CPU", 0) >= cpus and node.get("memory", 0) >= memory)


def find_own_error(error: BaseException) -> FcnRayError | None:
    """The FcnRayError at the root of what Ray raised, if one is: the user's data or settings, which no retry mends."""
    for found in _causes(error):
        if isinstance(found, FcnRayError):
            # Ray raises a class made of its own and ours, whose text is a traceback; the cause is what was raised.
            return getattr(found, "cause", found)
    return None


MISTAKES = (TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError, ImportError)
"""What code raises that is wrong, or wrongly installed, each time that it runs."""


def is_mistake(error: BaseException) -> bool:
    """Whether a group of workers was ended by a mistake, which no retry mends, and not by a worker's death."""
    failures = getattr(error, "worker_failures", {}).values()
    # After a death, of which Ray itself tells, the others may fail in any way.
    if any(type(failure).__module__.startswith("ray.") and not isinstance(failure, MISTAKES) for failure in failures):
        return False
    return any(isinstance(failure, MISTAKES) for failure in failures)  # not what libraries have caught on their way


def is_start_timeout(error: BaseException) -> bool:
    """Whether Ray Train waited in vain for the resources of a group of workers."""
    # No public module has this class.
    return any(type(found).__name__ == "WorkerGroupStartupTimeoutError" for found in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it came of, over whatever Ray has wrapped around it."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        found = pending.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        links = ("__cause__", "__context__", "cause", "_base_exc", "controller_failure")
        pending += [getattr(found, name, None) for name in links]
        pending += list(getattr(found, "worker_failures", {}).values())


TASKS_PER_CPU = 2
"""Tasks of `stream_tasks` in flight: one runs, the next waits for it; after an error no more than these go on."""


def stream_tasks(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Results of `function` for each of `arguments`, in their order, each from a Ray task."""
    task = ray.remote(function)
    most = TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: deque[ray.ObjectRef] = deque()
    for values in arguments:
        if len(running) >= most:
            yield ray.get(running.popleft())
        running.append(task.remote(*values))
    while running:
        yield ray.get(running.popleft())


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the FcnRayError at the root of what Ray raises within, instead of it."""
    try:
        yield
    except Exception as error:
        own = find_own_error(error)
        if own is None or own is error:
            raise
        raise own from error


def last_line(error: BaseException) -> str:
    """The line of Ray's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
