"""Nodes that go and come back while a training runs: real ones, each with its own raylet, killed without grace."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fcn_ray import storage
from fcn_ray.config import TrainConfig
from fcn_ray.config_text import dump_config, load_config
from fcn_ray.errors import DataError, DivergedError, IncompleteError, ResourceError, StorageError
from fcn_ray.training import job as training_job
from fcn_ray.training.checkpoints import Checkpoint, list_checkpoints
from fcn_ray.training.group import Group
from fcn_ray.training.preflight import prepare
from fcn_ray.training.seeing import read_curve
from tests import pictures
from tests.training.making import tiny_config, write_data

pytestmark = [pytest.mark.ray, pytest.mark.keras, pytest.mark.slow]

EPOCHS, STEPS = 2, 20


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that runs no work, and three nodes of one CPU each: two for workers, one for their input."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def _holds_a_worker(node: Any) -> bool:
    """True when a process of Ray Train's workers is a child of the node's raylet."""
    (raylet,) = node.all_processes["raylet"]
    for process in Path("/proc").iterdir():
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet.process.pid and "RayTrainWorker" in (process / "cmdline").read_text():
                return True
        except (OSError, ValueError, IndexError):
            continue
    return False


def _config(data: Path, out: Path, address: str | None, **flags: Any) -> TrainConfig:
    settings = {"data": str(data), "out": str(out), "address": address, "epochs": EPOCHS}
    settings |= {"model.width": 0.05, "model.fc_channels": 8, "augment.crop": (32, 64), "batch_size": 4}
    settings |= {"optimizer.learning_rate": 0.05, "optimizer.warmup_steps": 2, "workers.threads": 1}
    settings |= {"workers.count": 2, "workers.min_count": 1, "workers.wait_seconds": 60, "checkpoint_steps": 5}
    return load_config(TrainConfig, flags=settings | {key.replace("__", "."): value for key, value in flags.items()})


def _wait(run: subprocess.Popen[str], what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert run.poll() is None, f"the run ended before {what}: {run.communicate()[0]}"
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _newest_step(out: Path) -> int:
    found = list_checkpoints(str(out))
    return found[-1].step if found else 0


def test_a_node_that_goes_in_the_middle_of_an_epoch_costs_no_step(cluster: Any, tmp_path: Path) -> None:
    data = pictures.write_parquet(tmp_path / "train.parquet", 4 * STEPS, group=16)
    out = tmp_path / "out"
    file = tmp_path / "train.yaml"
    file.write_text(dump_config(_config(data, out, cluster.address)))
    command = [sys.executable, "-m", "fcn_ray", "train", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        _wait(run, "a checkpoint in the middle of an epoch", lambda: _newest_step(out) % STEPS != 0)
        lost = next(node for node in cluster.worker_nodes if _holds_a_worker(node))
        cluster.remove_node(lost, allow_graceful=False)
        text, _ = run.communicate(timeout=280)
    assert run.returncode == 0, text
    assert "starting 2 workers at step 0" in text
    assert "starting 1 worker at step" in text
    curve = read_curve(str(out))
    assert [record["step"] for record in curve] == [STEPS, 2 * STEPS]
    assert curve[-1]["loss"] < 0.6, "and it has learned as an undisturbed run does"


class _Silent:
    """A group whose workers go on for ever; it keeps what is asked of it."""

    def __init__(self, looks: int) -> None:
        self.left = looks
        self.asked: list[str] = []

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        return self.left < 0

    def abort(self) -> None:
        self.asked.append("abort")

    def ask_to_stop(self) -> None:
        self.asked.append("stop")


@pytest.mark.parametrize(
    ("rooms", "asked"),
    [
        ([2] * 9, []),
        ([1, 1, 1, 1, 1], ["abort"]),
        ([1, 1, 2, 1, 1, 2], []),
        ([3, 3, 3, 3], ["stop"]),
        ([3, 2, 3, 3, 2], []),
        ([9, 9, 9], ["stop"]),
    ],
)
def test_a_group_makes_place_for_one_that_fits_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rooms: list[int], asked: list[str]
) -> None:
    """Two workers of three: one node less leaves them without input for ever, one node more could take the third."""
    job = prepare(tiny_config(write_data(tmp_path), tmp_path / "out", workers__count=3, workers__min_count=1))
    monkeypatch.setattr(training_job, "LOOK_SECONDS", 0.0)
    left = iter(rooms)
    monkeypatch.setattr(training_job, "_room", lambda _: next(left))
    group = _Silent(len(rooms))
    training_job._run_group(job, group, 2, {})
    assert group.asked == asked


@pytest.mark.usefixtures("ray_session")
def test_a_group_that_is_aborted_ends_with_an_error_and_without_a_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(write_data(tmp_path), tmp_path / "out", epochs=1000, checkpoint_steps=0, val_every=1000)
    job = prepare(config)
    storage.replace(f"{job.config.out}/config.yaml", b"")
    stepped = threading.Event()
    group = Group(job, 1, None, 1.0, lambda record: stepped.set() if record["kind"] == "step" else None)
    assert stepped.wait(120)
    group.abort()
    with pytest.raises(Exception, match=r"(?s)died|dead|exit"):
        assert group.wait(60)


def _past_of(tmp_path: Path, *errors: Exception) -> tuple[list[str], training_job._Past]:
    """What is said of the errors, one after the other, of groups that began at checkpoints a, b..."""
    job = prepare(tiny_config(write_data(tmp_path), tmp_path / "out", workers__max_failures=1))
    past = training_job._Past(rate_factor=1.0)
    said = []
    for number, error in enumerate(errors):
        place = Checkpoint("abc"[number], 0, number, None, job.settings, {})
        said.append(training_job._survive(job, past, place, error))
    return said, past


def test_a_divergence_goes_back_and_the_next_one_further(tmp_path: Path) -> None:
    said, past = _past_of(tmp_path, DivergedError("x"), DivergedError("x"))
    assert said[1] == "x. Back to the last checkpoint, with 0.25 times the learning rate"
    assert past.diverged_from == {"b"}
    with pytest.raises(DivergedError):
        _past_of(tmp_path, *[DivergedError("x")] * 3)


def test_a_storage_that_fails_once_is_tried_again_and_a_mistake_is_not(tmp_path: Path) -> None:
    said, _ = _past_of(tmp_path, StorageError("a hiccup"))
    assert said == ["workers failed (a hiccup); starting again from the last checkpoint"]
    with pytest.raises(StorageError, match="another"):
        _past_of(tmp_path, StorageError("a hiccup"), StorageError("another"))
    with pytest.raises(DataError, match="row 7"):
        _past_of(tmp_path, DataError("row 7"))
    with pytest.raises(IncompleteError, match="the workers failed 2 times, the last time with: gone"):
        _past_of(tmp_path, RuntimeError("gone"), RuntimeError("gone"))


@pytest.mark.usefixtures("ray_session")
def test_room_that_does_not_come_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    config = tiny_config(write_data(tmp_path), tmp_path / "out", workers__cpus=50, workers__wait_seconds=1.5)
    with pytest.raises(
        ResourceError, match=r"1 workers of 50 CPUs each do not fit.* after \d s; workers.wait_seconds waits"
    ):
        training_job._wait_for_room(prepare(config))
