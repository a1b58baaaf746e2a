"""What a training remembers of its divergences when its driver has ended."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fcn_ray.training.checkpoints import Checkpoint, find_newest, list_checkpoints, load_best, save_checkpoint
from fcn_ray.training.divergence import Divergence, go_back, read_divergence
from fcn_ray.training.preflight import Job, prepare
from tests.training.making import tiny_config, write_data


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return prepare(tiny_config(write_data(tmp_path), tmp_path / "out", resume=True))


def _save(job: Job, step: int, score: float | None = None) -> str:
    return save_checkpoint(job.config.out, Checkpoint("", step // 3, step, score, job.settings, {}), {}).name


def _steps(job: Job) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(job.config.out)]


def test_it_is_remembered_by_whoever_goes_on(job: Job) -> None:
    assert read_divergence(job) == Divergence()
    _save(job, 3)
    first = go_back(job, Divergence(), 1.0)
    assert first == Divergence(1, 0.5, frozenset()) == read_divergence(job)
    assert _steps(job) == [3], "the first time only the rate is another"


def test_the_second_goes_further_back_than_any_checkpoint_that_diverged(job: Job) -> None:
    """Also than one that the group which diverged has saved itself, and than the same step saved twice."""
    _save(job, 3)
    distrusted = {_save(job, 6), _save(job, 6)}
    second = go_back(job, Divergence(1, 0.5), 0.5)
    assert second == Divergence(2, 0.25, frozenset(distrusted)) == read_divergence(job)
    assert _steps(job) == [3]
    third = go_back(job, second, 0.25)
    assert (third.rollbacks, len(third.distrusted), _steps(job)) == (3, 3, []), "back to the start"
    assert prepare(job.config).settings == job.settings, "and the folder is still that of a run"


def test_the_best_stays_for_the_bundle_but_is_not_gone_on_from(job: Job) -> None:
    _save(job, 3, 0.2)
    best = _save(job, 6, 0.4)
    second = go_back(job, Divergence(1, 0.5), 0.5)
    newest, found = find_newest(job.config.out, read_divergence(job).distrusted), load_best(job.config.out)
    assert newest is not None
    assert found is not None
    assert (newest.step, found[0].name, second.distrusted) == (3, best, {best})


def test_a_state_that_is_damaged_is_not_what_is_gone_back_from(job: Job) -> None:
    _save(job, 3)
    _save(job, 6)
    damaged = _save(job, 9)
    (Path(job.config.out) / "checkpoints" / damaged / "state.safetensors").unlink()
    go_back(job, Divergence(1, 0.5), 0.5)
    assert _steps(job) == [3], "6 is what diverged"


def test_another_learning_rate_has_all_its_tries_and_another_job_knows_of_none(job: Job) -> None:
    _save(job, 3)
    second = go_back(job, Divergence(1, 0.5), 0.5)
    lower = job.config.model_copy(update={"optimizer": job.config.optimizer.model_copy(update={"learning_rate": 0.01})})
    assert read_divergence(dataclasses.replace(job, config=lower)) == Divergence(0, 1.0, second.distrusted)
    assert read_divergence(dataclasses.replace(job, settings="other")) == Divergence()


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_file_is_passed_over(job: Job, text: str) -> None:
    go_back(job, Divergence(), 1.0)
    (Path(job.config.out) / "divergence.json").write_text(text)
    assert read_divergence(job) == Divergence()
