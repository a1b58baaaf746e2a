"""Looking into tables and tars while those before them are still being planned: in a store that is mostly waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from fcn_ray.tables.contents import RowGroup
from fcn_ray.tables.sources import Source

THREADS = 8
"""Tables and tars that are looked into at once."""

WINDOW = 64
"""Sources behind the one at hand that are known; the listing goes no further."""

Read = Callable[[Source, Event], Iterable[RowGroup]]
"""What is in a source; the event tells that nobody asks for it any more."""


class ReadAhead:
    """Reads what is in the sources that pass through `watch`, before `take` asks for it in the same order."""

    def __init__(self, read: Read) -> None:
        self._read, self._pool, self._closed = read, ThreadPoolExecutor(THREADS), Event()
        self._waiting: deque[tuple[Source, Future[Iterable[RowGroup]] | None]] = deque()
        self._current: Future[Iterable[RowGroup]] | None = None

    def watch(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The sources as they are; `take` belongs to the last one that came out."""
        for source in sources:
            begun = None if source.kind == "image" else self._pool.submit(self._read, source, self._closed)
            self._waiting.append((source, begun))
            while self._waiting and (self._waiting[0][1] is None or len(self._waiting) > WINDOW):
                yield self._next()
        while self._waiting:
            yield self._next()

    def take(self, source: Source) -> Iterable[RowGroup]:
        """What was read of `source`, the last that came out, nothing of an image; raises what reading it raised."""
        return self._current.result() if self._current else []

    def close(self) -> None:
        """Begin nothing more, and end what is under way: a process ends after its threads."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> Source:
        source, self._current = self._waiting.popleft()
        return source
