"""One step of real Ray Train workers: two take the one that one takes, and each sees the GPU that it asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from fcn_ray.config import TrainConfig
from fcn_ray.training import group
from fcn_ray.training.preflight import prepare
from tests.training.making import tiny_config, write_data

pytestmark = [pytest.mark.ray, pytest.mark.keras]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def _batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    for _ in range(3):
        images = rng.integers(0, 255, (4, 32, 64, 3), np.uint8)
        labels = rng.choice([0, 1, 2], (4, 32, 64), p=[0.6, 0.3, 0.1]).astype(np.uint8)
        labels[0] = 255  # one worker has far fewer valid pixels than the other, and not the same classes
        labels[1][labels[1] == 2] = 1
        yield images, labels


def _probe(loop_config: dict[str, Any]) -> None:
    """On a worker: three steps on its share of fixed global batches, then tell the loss and every variable."""
    import ray.train

    from fcn_ray.training.replica import build_replica
    from fcn_ray.training.step import build_step

    job, context = loop_config["job"], ray.train.get_context()
    replica = build_replica(job, context.get_world_rank(), context.get_world_size())
    step = build_step(replica, job)
    losses = []
    for images, labels in _batches():
        share = slice(replica.rank * 4 // replica.world, (replica.rank + 1) * 4 // replica.world)
        losses.append(step(images[share], labels[share]).loss)
    gathered = replica.gather(10 + replica.rank).tolist()
    about = {"kind": "probe", "rank": replica.rank, "gathered": gathered}
    loop_config["tell"](about | {"losses": losses, "arrays": replica.arrays()})


def _run_probe(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, probe: Callable[[dict[str, Any]], None] = _probe
) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(group, "work", probe)
    with group.Listener(told.append) as tell:
        group.fit(prepare(config), config.workers.count, {"job": prepare(config), "tell": tell})
    return sorted(told, key=lambda record: record["rank"])


def _first_dice(weights: tuple[float, ...]) -> float:
    """The dice loss of the first batch: a network whose scores are zero gives each of three classes a third."""
    labels = next(_batches())[1]
    true = np.bincount(labels[labels < 3], minlength=3)
    return float(1 - np.average(2 * true / 3 / (true.sum() / 3 + true), weights=weights))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("flags", "workers", "first_loss"),
    [
        ({}, 3, math.log(3)),
        ({"loss__kind": "dice", "loss__class_weights": (1, 2, 0.5)}, 2, _first_dice((1, 2, 0.5))),
        ({"model__backbone": "mobilenetv3_small", "model__width": 1.0}, 2, math.log(3)),
    ],
    ids=["cross_entropy_uneven", "weighted_dice", "batch_normalisation"],
)
def test_workers_take_the_step_of_one_and_end_equal(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    workers: int,
    first_loss: float,
) -> None:
    flags = {"model__dropout": 0} | flags
    (alone,) = _run_probe(tiny_config(data, tmp_path / "one", **flags), monkeypatch)
    assert alone["losses"][0] == pytest.approx(first_loss, rel=1e-5)
    first, *others = _run_probe(tiny_config(data, tmp_path / "many", workers__count=workers, **flags), monkeypatch)
    assert [other["gathered"] for other in [first, *others]] == [[10 + rank for rank in range(workers)]] * workers
    for other in others:
        assert first["losses"] == other["losses"]
        for name, array in first["arrays"].items():
            np.testing.assert_array_equal(array, other["arrays"][name], err_msg=name)
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-5)
    for name, array in alone["arrays"].items():
        np.testing.assert_allclose(first["arrays"][name], array, rtol=0, atol=1e-5, err_msg=name)
    trained = [name for name, array in alone["arrays"].items() if "momentum" in name and np.abs(array).max() > 0]
    assert any("conv" in name for name in trained), "gradients must reach the backbone"


def _probe_gpus(loop_config: dict[str, Any]) -> None:
    """On a worker whose machine seems to have two GPUs: tell which ones the strategy would see, by `workers.gpus`."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    from fcn_ray.training.replica import build_replica

    class SeenError(Exception):
        pass

    def look(**_: Any) -> None:
        raise SeenError

    machine = [b"/physical_device:CPU:0", b"/physical_device:GPU:0", b"/physical_device:GPU:1"]
    context.pywrap_tfe.TF_ListPhysicalDevices = lambda: machine
    tf.distribute.MultiWorkerMirroredStrategy = look
    job, seen = loop_config["job"], {}
    for gpus in (0, 0.5, 1):
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU"), "GPU")  # as TensorFlow begins
        workers = job.config.workers.model_copy(update={"gpus": gpus})
        with pytest.raises(SeenError):
            build_replica(dataclasses.replace(job, config=job.config.model_copy(update={"workers": workers})), 0, 1)
        visible = tf.config.get_visible_devices("GPU")
        seen[gpus] = [(gpu.name, tf.config.experimental.get_memory_growth(gpu)) for gpu in visible]
    loop_config["tell"]({"kind": "probe", "rank": 0, "seen": seen})


@pytest.mark.usefixtures("ray_session")
def test_a_worker_sees_one_gpu_at_most_and_none_that_it_did_not_ask_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told,) = _run_probe(tiny_config(data, tmp_path / "out"), monkeypatch, _probe_gpus)
    first = [("/physical_device:GPU:0", True)]
    assert told["seen"] == {0: [], 0.5: first, 1: first}


def test_a_listener_hears_all_records_before_it_ends(ray_session: None) -> None:
    heard: list[dict[str, Any]] = []
    with group.Listener(heard.append) as tell:
        for step in range(50):
            tell({"step": step})
    assert [record["step"] for record in heard] == list(range(50))


def test_a_listener_whose_queue_is_gone_ends_and_the_next_record_raises(ray_session: None) -> None:
    listener = group.Listener(lambda record: None)
    with listener as tell:
        ray.kill(listener._queue.actor)
        with pytest.raises(ray.exceptions.RayActorError):
            tell({"step": 1})
