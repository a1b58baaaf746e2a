"""How far a job is: one line that rewrites itself on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

REDRAW_SECONDS = 0.1
"""Shortest time between two drawings on a terminal."""

STATUS_SECONDS = 2.0
"""Shortest time between two calls of `write_status`."""

WINDOW_SECONDS = 60.0
"""The rate is that of this last stretch: a job's start says little about its end."""

Facts = dict[str, Any]


class Progress:
    """Shows done/total images, images/s, the time left and the bad images of a running job.

    On a terminal the line is redrawn, elsewhere one is written every `interval_seconds`. `write_status` gets the same
    as a dict (done, total, bad, images_per_second, seconds_left) at most every 2 s, and when the job ends.
    """

    def __init__(
        self,
        total: int,
        *,
        stream: TextIO | None = None,
        interval_seconds: float = 5.0,
        write_status: Callable[[Facts], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        width: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self._total, self._done, self._bad = total, 0, 0
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._line_every = REDRAW_SECONDS if self._terminal else interval_seconds
        self._write_status = write_status
        self._clock, self._width = clock, width
        self._start = self._line_at = self._status_at = clock()
        self._samples: deque[tuple[float, int]] = deque()
        self._drawn = 0
        self._shown = ""
        self._closed = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, bad: int = 0) -> None:
        """Note that `done` images have a result by now, `bad` of them without a mask."""
        now = self._clock()
        self._done, self._bad = done, bad
        self._remember(now)
        if now - self._line_at >= self._line_every:
            self._line_at = now
            self._show(self._line())
        if now - self._status_at >= STATUS_SECONDS:
            self._report(now)

    def close(self) -> None:
        """Show and report the last state, and end the line. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._terminal or self._line() != self._shown:
            self._show(self._line(), last=True)
        self._report(self._clock())

    def rate(self) -> float | None:
        """Images per second in the last minute; None until two updates tell."""
        if len(self._samples) < 2:
            return None
        (first_time, first), (last_time, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_time - first_time) if last_time > first_time else None

    def facts(self) -> Facts:
        """The state as plain values; None for what is not known yet."""
        rate = self.rate()
        left = (self._total - self._done) / rate if rate else None
        return {
            "done": self._done,
            "total": self._total,
            "bad": self._bad,
            "images_per_second": rate,
            "seconds_left": left,
        }

    def _remember(self, now: float) -> None:
        """Keep about one sample a second, and the last one before the window as its beginning."""
        if len(self._samples) > 1 and now - self._samples[-2][0] < WINDOW_SECONDS / 60:
            self._samples.pop()
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def _line(self) -> str:
        facts = self.facts()
        percent = f" ({100 * self._done / self._total:.0f} %)" if self._total else ""
        parts = [f"{self._done}/{self._total} images{percent}"]
        if facts["images_per_second"] is not None:
            parts.append(f"{facts['images_per_second']:.1f} images/s")
        if self._done >= self._total:
            parts.append(f"in {format_duration(self._clock() - self._start)}")
        elif facts["seconds_left"] is not None:
            parts.append(f"{format_duration(facts['seconds_left'])} left")
        if self._bad:
            parts.append(f"{self._bad} bad")
        return self._fit(parts)

    def _fit(self, parts: list[str]) -> str:
        """As many parts as the terminal is wide; a longer line would wrap, and stay when it is drawn again."""
        if self._terminal:
            while len(parts) > 1 and len("  ".join(parts)) >= self._width():
                parts = parts[:-1]
            return "  ".join(parts)[: max(1, self._width() - 1)]
        return "  ".join(parts)

    def _show(self, line: str, last: bool = False) -> None:
        self._shown = line
        if self._terminal:
            rest = min(self._drawn, self._width() - 1)  # of a longer line before, to be wiped
            self._stream.write("\r" + line.ljust(rest) + ("\n" if last else ""))
            self._drawn = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _report(self, now: float) -> None:
        self._status_at = now
        if self._write_status is not None:
            self._write_status(self.facts())


def format_duration(seconds: float) -> str:
    """Seconds for people, in two units at most: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h; "?" when unknown."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, lesser_name, lesser_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            lesser = whole % size // lesser_size
            return f"{whole // size} {name}" + (f" {lesser} {lesser_name}" if lesser else "")
    return f"{whole} s"
