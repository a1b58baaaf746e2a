"""What the cluster must have before a job starts, on clusters of several small nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from fcn_ray import cluster
from fcn_ray.errors import ResourceError

pytestmark = pytest.mark.ray

TWO_NODES = """
import json, os, sys

import ray
from ray.cluster_utils import Cluster

from fcn_ray import cluster
from fcn_ray.errors import ResourceError

ROOM = [(1, 0, 0), (1, 0, 1), (2, 0, 0), (0.5, 0.5, 0), (0.25, 0.4, 2.5), (3, 0, 0), (1, 0, 9)]

def ask(count, *, cpus, gpus=0, spare_cpus=0):
    try:
        cluster.require(count, cpus=cpus, gpus=gpus, spare_cpus=spare_cpus, purpose="workers")
    except ResourceError as error:
        return str(error)

def ask_memory(count, memory, spare=0, gpus=0):
    try:
        cluster.require_memory(count, memory, cpus=1, gpus=gpus, spare=spare, purpose="workers")
    except ResourceError as error:
        return str(error)

head = {"num_cpus": 2, "num_gpus": 0, "memory": 2 * 10**9, "include_dashboard": False}
nodes = Cluster(initialize_head=True, head_node_args=head)
nodes.add_node(num_cpus=1, num_gpus=2, memory=10**9)
cluster.connect(nodes.address)
found = {
    "three of 1 CPU": ask(3, cpus=1),
    "two of 1 CPU, one to spare": ask(2, cpus=1, spare_cpus=1),
    "three of 1 CPU, one to spare": ask(3, cpus=1, spare_cpus=1),
    "one of 2 CPUs": ask(1, cpus=2),
    "one of 3 CPUs": ask(1, cpus=3),
    "one of 1 CPU and 1 GPU": ask(1, cpus=1, gpus=1),
    "one of 2 CPUs and 1 GPU": ask(1, cpus=2, gpus=1),
    "four of 0.4 GPUs": ask(4, cpus=0.2, gpus=0.4),
    "five of 0.4 GPUs": ask(5, cpus=0.2, gpus=0.4),
    "three of 1 GB": ask_memory(3, 10**9),
    "four of 1 GB": ask_memory(4, 10**9),
    "one of 2.5 GB": ask_memory(1, 25 * 10**8),
    "two of 1.2 GB": ask_memory(2, 12 * 10**8),
    "one of 1.2 GB with a GPU": ask_memory(1, 12 * 10**8, gpus=1),
    "two of 1 GB, 1 GB to spare": ask_memory(2, 10**9, spare=10**9),
    "two of 0.9 GB, 1.2 GB to spare": ask_memory(2, 9 * 10**8, spare=12 * 10**8),
    "room": [cluster.count_room(cpus=c, gpus=g, spare_cpus=s) for c, g, s in ROOM],
    "shares": [cluster.count_gpu_shares(gpus=gpus) for gpus in (0.1, 0.4, 0.5, 1, 2, 3)],
}
ray.shutdown()
os.environ |= {"AWS_ENDPOINT_URL": "http://store", "AWS_SECRET_ACCESS_KEY": "secret"}  # the nodes run without them
os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "1"}}})
try:
    cluster.connect(nodes.address)
    read = ray.remote(lambda *names: [os.environ.get(name) for name in names])
    names = ["TF_CPP_MIN_LOG_LEVEL", "RAY_DATA_DISABLE_PROGRESS_BARS", "AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"]
    found["environment"] = ray.get(read.remote(*names))
except ResourceError as error:
    found["environment"] = str(error)
ray.shutdown()
nodes.shutdown()
json.dump(found, sys.stdout)
"""
"""Prints what a cluster of 2 CPUs on one node and 1 CPU and 2 GPUs on another says to workers, null when they fit; and
four variables of a task's environment in a job that sets the first, as `ray job submit` hands it over."""


@pytest.fixture(scope="module")
def two_nodes() -> dict[str, Any]:
    """In a process of its own: this one has its own Ray."""
    command = [sys.executable, "-c", TWO_NODES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_workers_that_fit_pass(two_nodes: dict[str, Any]) -> None:
    fitting = (
        "three of 1 CPU",
        "two of 1 CPU, one to spare",
        "one of 2 CPUs",
        "one of 1 CPU and 1 GPU",
        "four of 0.4 GPUs",
    )
    assert {workers: two_nodes[workers] for workers in fitting} == dict.fromkeys(fitting)


def test_the_room_is_what_fits_on_each_node_less_what_is_to_be_spared(two_nodes: dict[str, Any]) -> None:
    assert two_nodes["room"] == [3, 2, 1, 2, 2, 0, 0]


def test_workers_that_leave_no_cpu_to_read_with_are_refused(two_nodes: dict[str, Any]) -> None:
    assert two_nodes["three of 1 CPU, one to spare"] == (
        "3 workers leave no 1 CPUs to read and decode, the Ray cluster has 3 CPUs and 2 GPUs on 2 nodes: "
        "ask for less, add nodes, or join a larger cluster with --address"
    )


def test_the_cpus_of_two_nodes_do_not_add_up_to_one_worker(two_nodes: dict[str, Any]) -> None:
    assert two_nodes["one of 3 CPUs"] == (
        "1 workers of 3 CPUs each do not fit, the Ray cluster has 3 CPUs and 2 GPUs on 2 nodes with room for 0: "
        "ask for less, add nodes, or join a larger cluster with --address"
    )


def test_cpus_on_one_node_and_a_gpu_on_another_do_not_make_a_worker(two_nodes: dict[str, Any]) -> None:
    assert "1 workers of 2 CPUs and 1 GPUs each do not fit" in two_nodes["one of 2 CPUs and 1 GPU"]
    assert "with room for 0" in two_nodes["one of 2 CPUs and 1 GPU"]


def test_memory_is_counted_node_by_node_too(two_nodes: dict[str, Any]) -> None:
    assert two_nodes["three of 1 GB"] is None
    assert "4 workers with 1.0 GB of memory each do not fit" in two_nodes["four of 1 GB"]
    assert two_nodes["one of 2.5 GB"] == (
        "1 workers with 2.5 GB of memory each do not fit, the Ray cluster has 3.0 GB on 2 nodes with room for 0"
    )
    assert two_nodes["two of 1.2 GB"].endswith("with room for 1")
    assert two_nodes["one of 1.2 GB with a GPU"].endswith("with room for 0")
    assert two_nodes["two of 1 GB, 1 GB to spare"] is None
    assert two_nodes["two of 0.9 GB, 1.2 GB to spare"] == (
        "2 workers leave no 1.2 GB of memory on one node to read, decode and store, "
        "the Ray cluster has 3.0 GB on 2 nodes"
    )


def test_a_share_of_a_gpu_is_not_spread_over_two(two_nodes: dict[str, Any]) -> None:
    assert "5 workers of 0.2 CPUs and 0.4 GPUs each do not fit" in two_nodes["five of 0.4 GPUs"]
    assert two_nodes["shares"] == [20, 4, 4, 2, 1, 0]


def test_what_a_submitted_job_sets_in_its_environment_stays_and_ours_joins_it(two_nodes: dict[str, Any]) -> None:
    assert two_nodes["environment"][:2] == ["1", "1"]


def test_workers_hear_where_the_store_is_but_get_no_credentials(two_nodes: dict[str, Any]) -> None:
    assert two_nodes["environment"][2:] == ["http://store", None]


@pytest.mark.usefixtures("ray_session")
def test_tasks_stream_a_few_at_a_time_and_give_their_results_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    drawn: list[int] = []

    def arguments() -> Iterator[tuple[int]]:
        for number in range(9):
            drawn.append(number)
            yield (number,)

    ahead = [(result, len(drawn) - result) for result in cluster.stream_tasks(lambda number: number, arguments())]
    assert [result for result, _ in ahead] == list(range(9))
    assert max(count for _, count in ahead) == 2 * cluster.TASKS_PER_CPU + 1, "the next is drawn as one is done"


@pytest.mark.usefixtures("ray_session")
def test_an_error_of_ours_comes_out_of_a_task_as_it_was_raised() -> None:
    def fail() -> None:
        raise ResourceError("ours")

    def fall() -> None:
        raise ValueError("not ours")

    with pytest.raises(ResourceError, match=r"^ours$"), cluster.own_errors():
        list(cluster.stream_tasks(fail, [()]))
    with pytest.raises(ray.exceptions.RayTaskError, match="not ours"), cluster.own_errors():
        list(cluster.stream_tasks(fall, [()]))


def test_idle_processes_outlive_the_pause_between_two_chunks(ray_session: None, tmp_path: Path) -> None:
    """More of them than there are CPUs: those Ray would end after a second (DECISIONS 111)."""

    def meet(number: int) -> int:
        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 6:
            time.sleep(0.05)
        return os.getpid()

    met = ray.remote(num_cpus=0.5)(meet)
    processes = ray.get([met.remote(number) for number in range(6)])
    time.sleep(4)
    assert len(set(processes)) == 6
    assert all(map(psutil.pid_exists, processes))
