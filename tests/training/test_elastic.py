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

EPOCHS, STEPS = 3, 30


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head that holds no worker, and two nodes that hold one each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "resources": {"head": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


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


def test_a_node_that_goes_in_the_middle_of_an_epoch_costs_no_step(nodes: Any, tmp_path: Path) -> None:
    first, second = (nodes.add_node(num_cpus=1) for _ in range(2))
    assert first is not second
    data = pictures.write_parquet(tmp_path / "train.parquet", 4 * STEPS, group=16)
    out = tmp_path / "out"
    config = _config(data, out, nodes.address, workers__count=2)
    file = tmp_path / "train.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "fcn_ray", "train", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        _wait(run, "a checkpoint in the middle of an epoch", lambda: _newest_step(out) % STEPS not in (0, STEPS))
        nodes.remove_node(second, allow_graceful=False)
        text, _ = run.communicate(timeout=280)
    assert run.returncode == 0, text
    assert "starting 2 workers at step 0" in text
    assert "starting 1 worker at step" in text
    curve = read_curve(str(out))
    assert [record["step"] for record in curve] == [STEPS, 2 * STEPS, 3 * STEPS]
    last = curve[-1]
    assert last["val"]["mean_iou"] > 0.5, "and it has learned as an undisturbed run does"
