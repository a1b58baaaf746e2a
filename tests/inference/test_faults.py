"""A few of the faults of tests/benchmarks/faults.py, one job each: nothing is lost, doubled or torn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.fault_kinds import KINDS
from tests.benchmarks.faults import run_trial

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["zombie", "everything killed", "two jobs, growing input", "reply lost after a put"])
def test_a_disturbed_job_loses_nothing(kind: str, tiny_bundle: Path, tmp_path: Path) -> None:
    outcome = run_trial(kind, 0, str(tiny_bundle), tmp_path)
    assert outcome["clean"], outcome


def test_a_row_that_is_wrong_is_seen(tiny_bundle: Path, tmp_path: Path) -> None:
    """One file is not written, one is written that nobody expects, and one has another picture's mask."""

    def spoil(trial: object) -> None:
        masks = trial.masks  # type: ignore[attr-defined]
        masks["lost.png", 0] = masks["00.png", 0]
        masks["01.png", 0], masks["02.png", 0] = masks["02.png", 0], masks["01.png", 0]
        del masks["03.png", 0]

    KINDS["spoilt"] = spoil  # type: ignore[assignment]
    try:
        outcome = run_trial("spoilt", 0, str(tiny_bundle), tmp_path)
    finally:
        del KINDS["spoilt"]
    assert (outcome["clean"], outcome["lost"], outcome["doubled"], outcome["torn"]) == (False, 1, 1, 2)
