"""Nodes that go and come back while a training runs: real ones, each with its own raylet, killed without grace."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fcn_ray.config import TrainConfig
from fcn_ray.config_text import dump_config, load_config
from fcn_ray.training.checkpoints import list_checkpoints
from fcn_ray.training.seeing import read_curve
from tests import pictures

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
    settings = {"data": str(data), "val": str(data), "out": str(out), "address": address, "epochs": EPOCHS}
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


@pytest.mark.parametrize("holds_a_worker", [True, False], ids=["of a worker", "of the input"])
def test_a_node_that_goes_in_the_middle_of_an_epoch_costs_no_step(
    cluster: Any, tmp_path: Path, holds_a_worker: bool
) -> None:
    data = pictures.write_parquet(tmp_path / "train.parquet", 4 * STEPS, group=16)
    out = tmp_path / "out"
    file = tmp_path / "train.yaml"
    file.write_text(dump_config(_config(data, out, cluster.address)))
    command = [sys.executable, "-m", "fcn_ray", "train", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        _wait(run, "a checkpoint in the middle of an epoch", lambda: _newest_step(out) % STEPS != 0)
        lost = next(node for node in cluster.worker_nodes if _holds_a_worker(node) == holds_a_worker)
        cluster.remove_node(lost, allow_graceful=False)
        text, _ = run.communicate(timeout=280)
    assert run.returncode == 0, text
    assert "starting 2 workers at step 0" in text
    assert "starting 1 worker at step" in text
    curve = read_curve(str(out))
    assert [record["step"] for record in curve] == [STEPS, 2 * STEPS]
    assert curve[-1]["val"]["mean_iou"] > 0.5, "and it has learned as an undisturbed run does"
