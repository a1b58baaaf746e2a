"""What the steps of a training come to: mean loss, images/s, waiting for input, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class Meter:
    """What the steps since its start came to."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._start = time.monotonic()
        self._losses: list[float] = []
        self._steps, self._waited = 0, 0.0

    def add(self, loss: float | None, waited: float) -> None:
        """A step, its loss (None when it was left out), and the seconds that it waited for input."""
        self._steps += 1
        self._waited += waited
        if loss is not None:
            self._losses.append(loss)

    def seconds(self) -> float:
        """Since the start."""
        return max(time.monotonic() - self._start, 1e-9)

    def input_wait(self) -> float:
        """Share of the time since the start that was spent waiting for input."""
        return self._waited / self.seconds()

    def read(self) -> dict[str, Any]:
        """Mean loss (None when every step was left out), images/s, share of the time spent waiting for input."""
        seconds = self.seconds()
        return {
            "loss": float(np.mean(self._losses)) if self._losses else None,
            "images_per_second": self._steps * self._batch_size / seconds,
            "input_wait": self.input_wait(),
        }


def time_each(items: Iterator[T]) -> Iterator[tuple[int, T, float]]:
    """(number from 1, item, seconds waited for it)."""
    number = 0
    while True:
        start = time.monotonic()
        item = next(items, None)
        if item is None:
            return
        number += 1
        yield number, item, time.monotonic() - start


def find_peak_memory() -> int:
    """Bytes: the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
