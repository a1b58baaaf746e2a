"""Passes through the network side by side, each in a thread of its own.

A CPU's threads wait for one another at the end of every layer; of several passes another one then goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

PASS_PIXELS = 800_000
"""Padded pixels of a pass where there are several at once, four images of 480x360: as fast as larger ones, and more of
them come out even. With five, two cores waited for each other at the end of each list of 64."""

Item = TypeVar("Item")
Found = TypeVar("Found")


class Lanes:
    """At most `count` calls at once, and no more than so many pixels in them all; what is larger goes alone.

    `pass_pixels` is what each of them should have at most.
    """

    def __init__(self, count: int, pixels: int) -> None:
        self.pass_pixels = min(pixels, PASS_PIXELS) if count > 1 else pixels
        self._room, self._limit, self._taken = Condition(), pixels, 0
        self._pool = ThreadPoolExecutor(count, "lane") if count > 1 else None

    def map(self, function: Callable[[Item], Found], items: Sequence[Item], pixels: Sequence[int]) -> Iterator[Found]:
        """`function` of each item, in their order; `pixels` are those of each. The first error is raised."""
        if self._pool is None or len(items) == 1:
            return map(function, items)
        due = 0  # the next that may begin: out of their order, what is done would pile up behind the first

        def call(turn: int, item: Item, size: int) -> Found:
            nonlocal due
            with self._room:
                self._room.wait_for(lambda: turn == due and (not self._taken or self._taken + size <= self._limit))
                due += 1
                self._taken += size
                self._room.notify_all()
            try:
                return function(item)
            finally:
                with self._room:
                    self._taken -= size
                    self._room.notify_all()

        return self._pool.map(call, range(len(items)), items, pixels)
