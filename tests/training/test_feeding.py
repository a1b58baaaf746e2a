from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.training.feeding import Feeder, deal_feeders
from tests import pictures


@pytest.mark.parametrize(
    ("cpus", "homes", "expected"),
    [
        ({"a": 3}, "aa", [("a", 1), ("a", 1)]),
        ({"a": 2}, "a", [("a", 1)]),
        ({"a": 16, "b": 16}, "aaabbb", [("a", 4)] * 3 + [("b", 4)] * 3),
        ({"head": 0, "a": 1, "b": 1, "c": 1}, "ab", [("c", 1), ("c", 1)]),
        ({"a": 4, "b": 4, "c": 24}, "aabb", [("c", 6)] * 4),
        ({"a": 8, "b": 1}, "ab", [("a", 3), ("a", 3)]),
        ({"a": 1}, "a", [("a", 1)]),
        ({"a": 16, "b": 17}, "aaabbb", [("a", 4)] * 3 + [("b", 4)] * 3),
    ],
    ids=[
        "two share one",
        "one alone",
        "each at home",
        "a node for input",
        "a large node for input",
        "a poor home",
        "none to spare",
        "one CPU more is no reason to move",
    ],
)
def test_workers_are_fed_where_there_are_cpus_to_spare(
    cpus: dict[str, float], homes: str, expected: list[tuple[str, int]]
) -> None:
    assert deal_feeders(cpus, list(homes), 1) == [Feeder(node, tasks) for node, tasks in expected]


def test_a_worker_on_a_node_that_nobody_knew_is_fed_elsewhere() -> None:
    assert deal_feeders({"a": 2}, ["a", ""], 1) == [Feeder("a", 1), Feeder("a", 1)]


@given(st.lists(st.integers(0, 64), min_size=1, max_size=5), st.lists(st.integers(0, 4), min_size=1, max_size=16))
def test_no_node_runs_more_tasks_than_it_has_cpus_to_spare(cpus: list[int], homes: list[int]) -> None:
    """But for the one task that every worker needs."""
    nodes = {str(i): float(n) for i, n in enumerate(cpus)}
    places = [str(home % len(cpus)) for home in homes]
    feeders = deal_feeders(nodes, places, 0.5)
    assert len(feeders) == len(homes)
    for node, n in nodes.items():
        here = [feeder.tasks for feeder in feeders if feeder.node == node]
        assert sum(here) <= max(n - 0.5 * places.count(node), len(here))


PLACES = """
import json, sys, ray
from ray.cluster_utils import Cluster
from fcn_ray import cluster
from fcn_ray.training import ingest, order
from fcn_ray.training.feeding import Feeder

def stage(batch):
    return {"node": [ray.get_runtime_context().get_node_id()] * len(batch["key"])}

def places(node):
    batches = ingest.stream(reads, columns, stage, 4, Feeder(node, 2))
    return {place for batch in batches for place in batch["node"].tolist()}

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
first, second = (nodes.add_node(num_cpus=1) for _ in range(2))
cluster.connect(nodes.address)
columns = ingest.Columns("image", "mask")
reads = order.plan_pass(ingest.open_collection(sys.argv[1], columns).pieces)
found = [places(node.node_id) == {node.node_id} for node in (first, second)]
gone = second.node_id
nodes.remove_node(second, allow_graceful=False)
found.append(gone not in places(gone))
ray.shutdown()
nodes.shutdown()
print(json.dumps(found))
"""
"""Prints whether all tasks ran on the node of the feeder, for two nodes; and elsewhere once that node was gone."""


@pytest.mark.ray
def test_tasks_run_where_the_feeder_says_while_that_node_lives(tmp_path: Path) -> None:
    """In a process of its own: this one has its own Ray."""
    data = pictures.write_parquet(tmp_path / "data.parquet", 12, group=4)
    command = [sys.executable, "-c", PLACES, str(data)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [True, True, True]
