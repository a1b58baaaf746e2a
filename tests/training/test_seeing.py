from __future__ import annotations

from pathlib import Path
from typing import Any

from fcn_ray.training.checkpoints import Checkpoint
from fcn_ray.training.seeing import complete_curve, keep_curve, read_curve


def _record(epoch: int, **about: Any) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": epoch, "step": 3 * epoch, "loss": 1 / epoch} | about


def _end(epoch: int, **about: Any) -> Checkpoint:
    metrics = {key: value for key, value in _record(epoch, **about).items() if key != "kind"}
    return Checkpoint("", epoch, 3 * epoch, None, "", metrics)


MIDDLE = Checkpoint("", 2, 7, None, "", {"losses": (0.5, 1)})


def test_a_resumed_run_goes_on_with_the_curve_from_the_epoch_it_does_again(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 2):
        keep_curve(str(tmp_path), _record(epoch))
    assert read_curve(str(tmp_path)) == [_record(1), _record(2)]


def test_what_the_driver_did_not_keep_comes_from_the_checkpoints(tmp_path: Path) -> None:
    keep_curve(str(tmp_path), _record(1, val={"mean_iou": 0.1}))
    complete_curve(str(tmp_path), 7, [_end(1), _end(2, val={"mean_iou": 0.5}), _end(2), MIDDLE])
    assert read_curve(str(tmp_path)) == [_record(1, val={"mean_iou": 0.1}), _record(2, val={"mean_iou": 0.5})]


def test_what_comes_after_the_place_of_a_rollback_is_done_again(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        keep_curve(str(tmp_path), _record(epoch))
    complete_curve(str(tmp_path), 7, [_end(1), _end(2), MIDDLE, _end(3)])
    assert [line["epoch"] for line in read_curve(str(tmp_path))] == [1, 2]


def test_a_run_without_a_curve_gets_none(tmp_path: Path) -> None:
    complete_curve(str(tmp_path), 0, [])
    assert list(tmp_path.iterdir()) == []
