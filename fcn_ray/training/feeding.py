"""Where each worker's input is prepared: on one node, chosen so that the CPUs beside the workers are shared fairly.

Workers wait for each other in every step, so the input of each must go on whatever becomes of the others'. Ray's own
bookkeeping cannot promise that: a task whose output nobody fetches keeps its CPU, and Ray Data (2.60) deals out what is
left of a node in whole CPUs, so that one CPU beside two workers is none for either. The tasks of a stream therefore ask
Ray for no CPU; how many run at once, and where, is decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feeder:
    """What prepares the input of one worker."""

    node: str
    """Ray's id of the node that its tasks run on, while it lives; "" for any."""
    tasks: int
    """That decode and augment at once."""


def deal_feeders(cpus: Mapping[str, float], homes: Sequence[str], worker_cpus: float) -> list[Feeder]:
    """One feeder for each worker, given each node's CPUs and the node of each worker.

    A worker is fed at home, where its batches need not travel, unless that gives it less than its fair share.
    """
    workers = Counter(homes)
    spare = {node: max(0.0, cpus[node] - worker_cpus * workers[node]) for node in cpus}
    fair = sum(spare.values()) / len(homes)
    fed: Counter[str] = Counter()

    def share(node: str) -> float:
        return spare[node] / (fed[node] + 1)

    nodes = []
    for home in homes:
        stays = home in spare and share(home) >= fair - 1e-9
        nodes.append(home if stays else "")
        fed[home] += stays
    for rank, node in enumerate(nodes):
        if not node:
            nodes[rank] = max(spare, key=share)
            fed[nodes[rank]] += 1
    return [Feeder(node, max(1, int(spare[node] / fed[node]))) for node in nodes]
