"""CPUs of a container: what it may use, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fcn_ray import machine


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 CPUs, all of which this process may run on; its control groups are in the folder."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "cpu").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "12800000 100000\n"}, 64),
        ({"cpu.max": "what?"}, 64),
        ({"cpu/cpu.cfs_quota_us": "800000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_a_share_of_the_time_counts(large: Path, files: dict[str, str], cpus: int) -> None:
    for name, text in files.items():
        (large / name).write_text(text)
    assert machine.count_cpus() == cpus


def test_the_cpus_that_it_may_run_on_count(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7, 8})
    assert machine.count_cpus() == 3
    (large / "cpu.max").write_text("200000 100000\n")
    assert machine.count_cpus() == 2


@pytest.mark.parametrize(("asked", "told"), [(0, 3), (2.5, 3), (5, 5)])
def test_a_ray_that_is_started_here_is_told_so_many(monkeypatch: pytest.MonkeyPatch, asked: float, told: int) -> None:
    """Not those of the machine, which are more; but as many as the job needs to read beside its actors."""
    import ray

    from fcn_ray import cluster

    given: dict[str, object] = {}
    monkeypatch.setattr(machine, "count_cpus", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    cluster._init(None, asked, verbose=False)
    assert given["num_cpus"] == told
