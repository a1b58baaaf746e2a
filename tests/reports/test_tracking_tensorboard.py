import subprocess
import sys

import pytest

from fcn_ray.errors import ConfigError
from fcn_ray.reports.tracking_tensorboard import TensorBoard

START = {"kind": "start", "step": 0, "classes": ["sky", "road"]}


def step(number, loss):
    return {"kind": "step", "step": number, "epoch": 1, "loss": loss, "learning_rate": 1e-3, "input_wait": 0.0}


def write(folder, *records):
    board = TensorBoard(str(folder))
    for record in records:
        board.hear(record)
    board.close("FINISHED")


def read(folder):
    """Curves as tensorboard's own reader sees them: name -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_what_was_told(tmp_path):
    val = {"mean_iou": 0.5, "class_iou": [0.4, None]}
    epoch = {"kind": "epoch", "epoch": 1, "step": 20, "loss": 0.7, "val": val}
    write(tmp_path / "board", START, step(10, 0.9), step(20, 0.8), {"kind": "weather"}, epoch)
    assert read(tmp_path / "board") == {
        "loss": [(10, 0.9), (20, 0.8)],
        "learning_rate": [(10, 1e-3), (20, 1e-3)],
        "input_wait": [(10, 0.0), (20, 0.0)],
        "epoch/loss": [(20, 0.7)],
        "val/mean_iou": [(20, 0.5)],
        "val/iou/sky": [(20, 0.4)],
    }


def test_a_training_that_goes_on_replaces_the_steps_that_it_does_again(tmp_path):
    write(tmp_path, START, step(10, 0.9), step(20, 0.8), step(30, 0.7))
    write(tmp_path, START | {"step": 20}, step(30, 0.6), step(40, 0.5))
    assert len(list(tmp_path.iterdir())) == 2
    assert read(tmp_path)["loss"] == [(10, 0.9), (20, 0.8), (30, 0.6), (40, 0.5)]


def test_workers_that_go_back_replace_the_steps_that_they_do_again(tmp_path):
    back = {"kind": "workers", "count": 2, "step": 10}
    write(tmp_path, START, step(10, 0.9), step(20, 0.8), back, step(20, 0.7))
    assert read(tmp_path)["loss"] == [(10, 0.9), (20, 0.7)]


def test_what_was_told_is_there_before_the_end(tmp_path):
    board = TensorBoard(str(tmp_path))
    board.hear(START)
    board.hear(step(10, 0.9))
    assert read(tmp_path)["loss"] == [(10, 0.9)]
    board.close("FAILED")


def test_nothing_told_is_nothing_written(tmp_path):
    write(tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_the_driver_loads_no_tensorflow(tmp_path):
    code = f"""
import sys
from fcn_ray.reports.tracking_tensorboard import TensorBoard
board = TensorBoard({str(tmp_path)!r})
board.hear({START!r})
board.hear({step(10, 0.9)!r})
board.close("FINISHED")
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read(tmp_path)["loss"] == [(10, 0.9)]


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r'pip install "fcn_ray\[tensorboard\]"'):
        TensorBoard(str(tmp_path))
