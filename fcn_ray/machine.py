"""How many CPUs this process may use: a container, or a scheduler, often gives it fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def count_cpus() -> int:
    """At least one: the machine's, those that this process may run on, or its share of their time, the fewest."""
    counts = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):  # Linux
        counts.append(len(os.sched_getaffinity(0)))
    for quota, period in (_read("cpu.max"), _read("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        if quota > 0 and period > 0:
            counts.append(quota / period)
    return max(1, int(min(counts)))


def _read(*names: str) -> tuple[int, int]:
    """Microseconds of CPU time in each period of so many, as control groups say; (0, 0) without a limit."""
    try:
        quota, period = " ".join((CGROUP / name).read_text(encoding="ascii") for name in names).split()
        return int(quota), int(period)
    except (OSError, ValueError):  # none, or "max"
        return 0, 0
