"""The step of one worker, in this process: the strategy is the default one, which reduces over nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_ray.config import TrainConfig
from fcn_ray.config_text import load_config
from fcn_ray.training.preflight import Job, prepare
from tests import pictures

pytestmark = pytest.mark.keras


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.write_parquet(tmp_path_factory.mktemp("data") / "train.parquet", 12)


def _job(data: Path, **settings: Any) -> Job:
    flags = {"data": str(data), "out": str(data.parent / "out"), "batch_size": 6, "epochs": 1}
    flags |= {"model.width": 0.05, "model.fc_channels": 8, "model.dropout": 0, "optimizer.warmup_steps": 0}
    flags |= {"optimizer.learning_rate": 0.05} | {key.replace("__", "."): value for key, value in settings.items()}
    return prepare(load_config(TrainConfig, flags=flags))


def _build(job: Job) -> tuple[Any, Any]:
    import tensorflow as tf

    from fcn_ray.training.replica import Replica, build_network, build_optimizer
    from fcn_ray.training.step import build_step

    model, pretrained = build_network(job, {})
    optimizer = build_optimizer(job.config, job.steps_per_epoch, model, pretrained)
    optimizer.build(model.trainable_variables)
    replica = Replica(tf.distribute.get_strategy(), model, optimizer, 0, 1, pretrained)
    return replica, build_step(replica, job)


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = rng.choice([0, 1, 2, 255], (6, 32, 64), p=[0.5, 0.2, 0.1, 0.2]).astype(np.uint8)
    labels[:2] = 255  # the parts of a step have very different numbers of valid pixels
    return rng.integers(0, 255, (6, 32, 64, 3), np.uint8), labels


@pytest.mark.parametrize(
    "loss",
    [{}, {"loss__reduction": "sum", "optimizer__learning_rate": 1e-5}, {"loss__kind": "focal"}],
    ids=["mean", "sum", "focal"],
)
def test_a_step_in_parts_is_the_step(data: Path, loss: dict[str, Any]) -> None:
    whole, in_parts = _build(_job(data, **loss)), _build(_job(data, accumulate=4, **loss))
    for _ in range(3):
        expected, found = (step(*_batch()) for _, step in (whole, in_parts))
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    before, after = whole[0].arrays(), in_parts[0].arrays()
    assert before["model/score_fr/kernel"].any()
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_a_step_that_is_not_finite_changes_nothing_but_the_place_in_the_schedule(data: Path) -> None:
    replica, step = _build(_job(data, model__backbone="mobilenetv3_small", model__width=1.0))
    assert step(*_batch()).taken
    kernel = replica.model.trainable_variables[0]
    sound = kernel.numpy()
    kernel.assign(np.full_like(sound, np.nan))
    before = replica.arrays()
    assert not step(*_batch()).taken
    after = replica.arrays()
    changed = {name for name in before if not np.array_equal(before[name], after[name], equal_nan=True)}
    assert {name.rpartition("/")[2] for name in changed} == {"iteration"}
    assert replica.optimizer.iterations.numpy() == 2
    kernel.assign(sound)
    assert step(*_batch()).taken


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is(data: Path) -> None:
    replica, step = _build(_job(data, optimizer__backbone_rate=1.0))
    replica.model.trainable_variables[0].assign(np.full(replica.model.trainable_variables[0].shape, 1e38, np.float32))
    labels = np.full((6, 32, 64), 255, np.uint8)  # a loss of nothing is 0
    outcome = step(_batch()[0], labels)
    assert outcome.loss == 0
    assert not outcome.taken


def test_one_worker_that_wants_to_stop_is_heard(data: Path) -> None:
    _, step = _build(_job(data))
    assert not step(*_batch()).stop
    outcome = step(*_batch(), stop=True)
    assert outcome.stop
    assert outcome.taken, "the step itself is taken"


@pytest.mark.parametrize(("gpus", "expected"), [(0, "RING"), (0.5, "RING"), (1, "NCCL")])
def test_workers_add_up_over_nccl_when_each_has_a_gpu_of_its_own(
    data: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, expected: str
) -> None:
    import tensorflow as tf

    from fcn_ray.training import replica

    class ChosenError(Exception):
        """Ends the building where the strategy is made: the rest is the same with any."""

    def choose(communication_options: Any) -> None:
        raise ChosenError(communication_options.implementation.name)

    monkeypatch.setattr(replica, "use_devices", lambda *_: None)  # TensorFlow has begun in this process
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", choose)
    with pytest.raises(ChosenError, match=expected):
        replica.build_replica(_job(data, workers__gpus=gpus), 0, 2)
