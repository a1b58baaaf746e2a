import logging
import re
import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fcn_ray.reports import tracking
from fcn_ray.reports.tracking import follow, scalars

STEP = {"kind": "step", "step": 3, "epoch": 1, "loss": 0.5, "learning_rate": 1e-3, "images_per_second": 9.0}


class Notebook:
    """A tracker that writes down what it hears, and raises whatever `trouble` gives for a record."""

    def __init__(self, trouble=lambda record: None):
        self.heard, self.outcome, self._trouble = [], None, trouble

    def hear(self, record):
        if error := self._trouble(record):
            raise error
        self.heard.append(record["step"])

    def close(self, outcome):
        self.outcome = outcome


def tell(tracker, count=5, **options):
    with follow([tracker], **options) as hear:
        for step in range(count):
            hear(STEP | {"step": step})


def test_every_tracker_hears_everything_in_its_order():
    trackers = [Notebook(), Notebook()]
    with follow(trackers) as hear:
        for step in range(200):
            hear(STEP | {"step": step})
    for tracker in trackers:
        assert tracker.heard == list(range(200))
        assert tracker.outcome == "FINISHED"


@pytest.mark.parametrize(("error", "outcome"), [(RuntimeError(), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_trackers_are_told_how_it_ended(error, outcome):
    tracker = Notebook()
    with pytest.raises(type(error)), follow([tracker]):
        raise error
    assert tracker.outcome == outcome


def test_an_error_is_logged_once_and_costs_only_its_records(caplog):
    tracker = Notebook(lambda record: OSError("disk full") if record["step"] != 3 else None)
    tell(tracker)
    assert (tracker.heard, tracker.outcome) == ([3], "FINISHED")
    assert [r.getMessage() for r in caplog.records] == [
        "Notebook failed, the training goes on (OSError: disk full)",
        "Notebook: 4 records did not reach it",
    ]


def test_one_tracker_that_hangs_holds_neither_the_training_nor_the_others(caplog):
    free = threading.Event()
    slow, quick = Notebook(lambda record: free.wait(60) and None), Notebook()
    start = time.monotonic()
    with follow([slow, quick], closing_seconds=0.5) as hear:
        for step in range(5):
            hear(STEP | {"step": step})
    assert time.monotonic() - start < 10
    free.set()
    assert (quick.heard, quick.outcome) == ([0, 1, 2, 3, 4], "FINISHED")
    assert [r.getMessage() for r in caplog.records] == ["Notebook does not answer: 4 records did not reach it"]


def test_what_waits_is_bounded(monkeypatch, caplog):
    monkeypatch.setattr(tracking, "MOST_WAITING", 10)
    free = threading.Event()
    tracker = Notebook(lambda record: free.wait(60) and None)
    with follow([tracker]) as hear:
        for step in range(100):
            hear(STEP | {"step": step})
        free.set()
    assert 10 <= len(tracker.heard) <= 11
    assert caplog.records[-1].levelno == logging.WARNING
    assert re.search(r"(89|90) records did not reach it", caplog.text)


def test_no_tracker_is_no_work():
    before = threading.active_count()
    with follow([]) as hear:
        hear(STEP)
        assert threading.active_count() == before


def test_the_curves_of_a_step():
    assert scalars(STEP | {"learning_rate": float("nan"), "input_wait": None}, ["sky"]) == {
        "loss": 0.5,
        "images_per_second": 9.0,
    }


def test_the_curves_of_an_epoch():
    val = {"mean_iou": 0.5, "pixel_accuracy": None, "class_iou": [0.4, None, 0.6], "confusion": [[1]]}
    record = {"kind": "epoch", "epoch": 1, "step": 9, "loss": 2, "memory_bytes": 10, "val": val}
    assert scalars(record, ["sky", "road", "sign / symbol"]) == {
        "epoch/loss": 2.0,
        "epoch/memory_bytes": 10.0,
        "val/mean_iou": 0.5,
        "val/iou/sky": 0.4,
        "val/iou/sign _ symbol-2": 0.6,
    }
    assert scalars(record, ())["val/iou/class 2"] == 0.6
    assert scalars({"kind": "weather", "step": 1, "loss": 1.0}, ()) == {}


def test_an_epoch_that_was_not_validated_has_its_other_curves():
    record = {"kind": "epoch", "epoch": 1, "step": 9, "loss": 2, "seconds": 30.0}
    assert scalars(record, ["sky", "road"]) == {"epoch/loss": 2.0, "epoch/seconds": 30.0}


@example(["b_-1", "b!"])
@example(["x" * 300, "y" * 300])
@given(st.lists(st.text(max_size=300), min_size=2, max_size=30, unique=True))
def test_the_names_of_the_curves_differ_and_are_plain(classes):
    record = {"kind": "epoch", "val": {"class_iou": [0.5] * len(classes)}}
    names = list(scalars(record, classes))
    assert len(names) == len(classes)
    for name in names:
        assert re.fullmatch(r"val/iou/[\w. -]*[^/. ]", name), name
        assert len(name) <= 250
