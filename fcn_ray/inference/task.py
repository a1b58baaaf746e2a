"""The task at hand, as Ray sees it. Stages also run outside of Ray, which they therefore do not import."""

from __future__ import annotations

import sys
from dataclasses import dataclass


def attempt() -> int:
    """How often the task at hand was begun before, on processes that died; 0 outside of tasks."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return 0
    # No public name: retries are Ray's affair. It is known in the thread of the task only.
    found = ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()
    return max(0, int(found))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the code at hand runs, by Ray's ids, and which nodes there are."""

    job: str
    node: str
    alive: frozenset[str]


def here() -> Place:
    """The job and node of the task at hand."""
    ray = sys.modules["ray"]
    context = ray.get_runtime_context()
    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    return Place(context.get_job_id(), context.get_node_id(), alive)
