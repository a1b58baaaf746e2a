from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.training.feeding import Feeder, deal_feeders


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
    ],
    ids=[
        "two share one",
        "one alone",
        "each at home",
        "a node for input",
        "a large node for input",
        "a poor home",
        "none to spare",
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
