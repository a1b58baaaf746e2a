"""Telling other programs about a training, in threads of their own, so that none of them can cost the training.

A tracker takes the records that the driver hears (`hear`) and the end (`close`). TensorBoard and MLflow are in
tracking_tensorboard.py and tracking_mlflow.py.
"""

from __future__ import annotations

import logging
import math
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from fcn_ray.errors import IncompleteError, TerminatedError

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
"""What happened in a training: {"kind": "start" | "step" | "epoch" | ..., ...}."""

Outcome = Literal["FINISHED", "FAILED", "KILLED"]

MOST_WAITING = 10_000
"""Records that may wait for a tracker that does not answer; what comes beyond them is left out."""

CLOSING_SECONDS = 60.0
"""Time that a tracker has at the end for what still waits."""

_OF_A_STEP = ("loss", "learning_rate", "images_per_second", "input_wait")
_OF_AN_EPOCH = ("loss", "images_per_second", "input_wait", "seconds", "memory_bytes")
_OF_A_VALIDATION = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


class Tracker(Protocol):
    """Anything that takes the records of a training. Kinds that it does not know it passes over."""

    def hear(self, record: Record) -> None:
        """Take one record. It may raise, and take its time."""

    def close(self, outcome: Outcome) -> None:
        """Take the end of the training."""


@contextmanager
def follow(trackers: Sequence[Tracker], closing_seconds: float = CLOSING_SECONDS) -> Iterator[Callable[[Record], None]]:
    """Gives a function that hands a record to all `trackers` and returns at once; closes them at the end.

    An error of a tracker is logged, the first time in full, and goes no further.
    """
    followers = [_Follower(tracker) for tracker in trackers]
    outcome: Outcome = "FAILED"

    def hear(record: Record) -> None:
        for follower in followers:
            follower.hear(record)

    try:
        yield hear
        outcome = "FINISHED"
    except KeyboardInterrupt:
        outcome = "KILLED"
        raise
    except IncompleteError as error:
        outcome = "KILLED" if isinstance(error.__cause__, TerminatedError) else "FAILED"
        raise
    finally:
        for follower in followers:
            follower.finish(outcome)
        for follower in followers:
            follower.wait(closing_seconds)


class _Follower:
    """One tracker and the thread that serves it."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._name = tracker, type(tracker).__name__
        self._waiting: queue.Queue[Record] = queue.Queue(MOST_WAITING)
        self._ending: Outcome | None = None
        self._missed, self._failed = 0, False
        self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self._thread.start()

    def hear(self, record: Record) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._missed += 1

    def finish(self, outcome: Outcome) -> None:
        self._ending = outcome

    def wait(self, seconds: float) -> None:
        """Wait for the thread, but not for ever: a server that hangs must not hold the job."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("%s does not answer: %d records did not reach it", self._name, self._waiting.qsize())
        elif self._missed:
            logger.warning("%s: %d records did not reach it", self._name, self._missed)

    def _serve(self) -> None:
        while True:
            outcome = self._ending  # before the queue is looked at: nothing comes after it
            try:
                record = self._waiting.get(timeout=0.1)
            except queue.Empty:
                if outcome is not None:
                    self._try(self._tracker.close, outcome)
                    return
                continue
            self._try(self._tracker.hear, record)

    def _try(self, tell: Callable[[Any], None], what: Any) -> None:
        try:
            tell(what)
        except Exception as error:  # whatever a foreign program does, the training goes on
            self._missed += 1
            if not self._failed:  # the next thousand errors would say the same
                logger.warning("%s failed, the training goes on (%s: %s)", self._name, type(error).__name__, error)
            self._failed = True


def scalars(record: Record, classes: Sequence[str]) -> dict[str, float]:
    """The finite numbers of a "step" or "epoch" record by the name of their curve; none for other kinds.

    Names are loss, learning_rate, ..., epoch/loss, ..., val/mean_iou, ..., val/iou/<class>.
    """
    found: dict[str, Any] = {}
    if record["kind"] == "step":
        found = {name: record.get(name) for name in _OF_A_STEP}
    elif record["kind"] == "epoch":
        found = {f"epoch/{name}": record.get(name) for name in _OF_AN_EPOCH}
        val = record.get("val") or {}
        found |= {f"val/{name}": val.get(name) for name in _OF_A_VALIDATION}
        if ious := val.get("class_iou"):
            found |= dict(zip(_curve_names(classes, len(ious)), ious, strict=True))
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _curve_names(classes: Sequence[str], count: int) -> list[str]:
    """Names in letters, digits, spaces and "_.-" only, which is what every tracker takes; no two are equal."""
    names: list[str] = []
    for index, name in enumerate(classes or [f"class {index}" for index in range(count)]):
        plain = re.sub(r"[^\w. -]", "_", name)[:200].strip(". ")
        curve = f"val/iou/{plain}" if plain and plain == name else f"val/iou/{plain}-{index}"
        while curve in names:
            curve += "_"
        names.append(curve)
    return names
