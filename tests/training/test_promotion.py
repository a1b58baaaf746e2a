"""What becomes of a training's bundle on a cluster that other jobs use too."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from fcn_ray.errors import IncompleteError
from fcn_ray.training import patience, promotion
from fcn_ray.training.checkpoints import Checkpoint, save_checkpoint
from fcn_ray.training.preflight import Job, prepare
from tests.training.making import tiny_config, write_data

pytestmark = pytest.mark.ray


@pytest.fixture
def job(tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A trained job whose processes want two CPUs of the four."""
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.2)
    data = write_data(tmp_path)
    job = prepare(tiny_config(data, tmp_path / "out", val=str(data), workers__cpus=2))
    save_checkpoint(job.config.out, Checkpoint("", 1, 3, 0.1, job.settings, {}), {})
    return job


class Other:
    """Another job's process."""

    def begin(self) -> int:
        return 1


def test_room_that_does_not_come_is_told_of_and_ends_the_wait(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LEAST_SECONDS", 1.0)
    told: list[dict[str, Any]] = []
    other = ray.remote(num_cpus=3)(Other).remote()
    ray.get(other.begin.remote())
    try:
        with pytest.raises(IncompleteError, match=r"no room came within 1\.0 s .*--resume goes on from .*/out"):
            promotion.promote(job, 1, told.append)
    finally:
        ray.kill(other)
    assert [record["message"][:25] for record in told] == ["waiting for room to score"]


class Dying(promotion.Promoter):
    """As one that takes more memory than there is."""

    def score(self) -> promotion.Rescored:
        os._exit(1)


def test_a_process_that_dies_again_and_again_leaves_a_training_that_goes_on(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "Promoter", Dying)
    monkeypatch.setattr(promotion, "RESTARTS", 1)
    with pytest.raises(IncompleteError, match=r"died 2 times, .*--resume goes on from .*/out"):
        promotion.promote(job, 1, lambda _: None)


def test_who_waits_behind_a_process_that_works_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes: an hour here, then the next has nine minutes to start, and works for another hour."""
    looks = 360 * ["begun"] + 54 * ["pending"] + 360 * ["begun"] + ["done"]
    clock = iter(range(0, 10_000_000, 10))
    left = iter(looks)
    look = ""

    def wait(refs: list[str], timeout: float) -> tuple[list[str], list[str]]:
        nonlocal look
        if refs == ["task"]:
            look = next(left)
            return (refs, []) if look == "done" else ([], refs)
        return (refs, []) if look == "begun" else ([], refs)

    monkeypatch.setattr(patience, "ray", SimpleNamespace(wait=wait))
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told: list[dict[str, Any]] = []
    job = prepare(tiny_config(write_data(tmp_path), tmp_path / "out"))
    waiting = patience.Patience(job, Checkpoint("", 1, 3, None, "", {}), told.append)
    assert waiting.wait(["task"], ["beginning"]) == "task"
    assert len(told) == 1
    left = iter(62 * ["pending"] + ["done"])
    with pytest.raises(IncompleteError, match="no room came within 10 min"):
        waiting.wait(["task"], ["beginning"])
