"""What becomes of a training's bundle on a cluster that other jobs use too."""

from __future__ import annotations

import os
from pathlib import Path
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
    monkeypatch.setattr(patience, "LEAST_SECONDS", 1.0)
    data = write_data(tmp_path)
    job = prepare(tiny_config(data, tmp_path / "out", val=str(data), workers__cpus=2))
    save_checkpoint(job.config.out, Checkpoint("", 1, 3, 0.1, job.settings, {}), {})
    return job


class Other:
    """Another job's process."""

    def begin(self) -> int:
        return 1


def test_room_that_does_not_come_is_told_of_and_ends_the_wait(job: Job) -> None:
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


def test_who_waits_behind_a_process_that_works_is_waited_for(job: Job) -> None:
    """However long that takes: here a second, and twice the patience."""
    told: list[dict[str, Any]] = []

    class Slow:
        def begin(self) -> None:
            pass

        def score(self) -> int:
            import time

            time.sleep(2)
            return 1

    slow = [ray.remote(num_cpus=3)(Slow).remote() for _ in range(2)]
    found = promotion._score(slow, patience.Patience(job, Checkpoint("", 1, 3, None, "", {}), told.append))
    for process in slow:
        ray.kill(process)
    assert found == [1, 1]
