from __future__ import annotations

from pathlib import Path
from typing import Any

from fcn_ray.training.curve import keep_curve, read_curve


def _record(epoch: int, **about: Any) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": epoch, "step": 3 * epoch, "loss": 1 / epoch} | about


def test_a_resumed_run_goes_on_with_the_curve_from_the_epoch_it_does_again(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 2):
        keep_curve(str(tmp_path), _record(epoch))
    assert read_curve(str(tmp_path)) == [_record(1), _record(2)]


def test_a_run_that_has_not_ended_an_epoch_has_no_curve(tmp_path: Path) -> None:
    assert read_curve(str(tmp_path)) == []
