"""Nodes that go while a training runs: real ones, each with its own raylet, killed without grace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import node_loss

pytestmark = [pytest.mark.ray, pytest.mark.keras, pytest.mark.slow]


@pytest.mark.timeout(600)  # a cluster and three groups of workers, one after the other
def test_a_node_that_goes_in_the_middle_of_an_epoch_costs_no_step_and_changes_no_loss(tmp_path: Path) -> None:
    """In a process of its own: a cluster's end would take this one's connection with it."""
    command = [sys.executable, node_loss.__file__, str(tmp_path), "--lose", "worker", "--seconds", "140"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
