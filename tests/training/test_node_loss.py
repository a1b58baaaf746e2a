"""Nodes that go while a training runs: real ones, each with its own raylet, killed without grace."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcn_ray.training.job import train
from fcn_ray.training.seeing import read_curve
from tests.benchmarks import node_loss

pytestmark = [pytest.mark.ray, pytest.mark.keras, pytest.mark.slow]


@pytest.mark.usefixtures("ray_session")
def test_a_node_that_goes_in_the_middle_of_an_epoch_costs_no_step_and_changes_no_loss(tmp_path: Path) -> None:
    code, text = node_loss.train_and_lose(tmp_path, "worker", 200)
    assert code == 0, text
    assert "starting 2 workers at step 0" in text
    assert "starting 1 worker at step" in text
    train(node_loss.make_config(tmp_path, "whole"))
    lost, whole = (read_curve(str(tmp_path / out)) for out in ("lost", "whole"))
    assert [record["step"] for record in lost] == [node_loss.STEPS, 2 * node_loss.STEPS]
    assert [record["loss"] for record in lost] == pytest.approx([record["loss"] for record in whole], rel=1e-3)
