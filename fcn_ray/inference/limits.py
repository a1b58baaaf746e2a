"""What one image may take of the process that decodes it: seconds and memory.

A decoder that hangs holds the interpreter, so the clock is faulthandler's, which runs without it: it ends the process,
and Ray tries the chunk again in another one. Memory is a limit of the system: decoding fails with MemoryError.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_STDERR = 2

_CLOCK_SECONDS = 1.0
"""The clock is a thread, and started anew at most so often: images that take milliseconds share one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """For each image: `seconds` of wall time, `memory` in bytes above what the process has when it begins."""

    seconds: float
    memory: int

    @contextmanager
    def watch(self) -> Iterator[Callable[[], None]]:
        """Within, the limits hold; the function that comes out is called when the next image begins."""
        before = _data_limit()
        clock_started = -math.inf

        def begin_image() -> None:
            nonlocal clock_started
            now = time.monotonic()
            if now - clock_started >= _CLOCK_SECONDS:
                faulthandler.dump_traceback_later(self.seconds + _CLOCK_SECONDS, exit=True, file=_STDERR)
                clock_started = now
            self.limit_memory()

        try:
            yield begin_image
        finally:
            faulthandler.cancel_dump_traceback_later()
            _set_data_limit(before)

    def limit_memory(self) -> None:
        """Let this process have so much more memory of its own; what it shares, as Ray's object store, does not count.

        Does nothing but on Linux.
        """
        if sys.platform == "linux":
            with open("/proc/self/statm", "rb") as file:
                pages = int(file.read().split()[5])  # data and stack
            _set_data_limit(pages * os.sysconf("SC_PAGE_SIZE") + self.memory)


def _data_limit() -> int:
    if sys.platform == "win32":
        return -1
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def _set_data_limit(limit: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    highest = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if highest != resource.RLIM_INFINITY and (limit == resource.RLIM_INFINITY or limit > highest):
        limit = highest
    resource.setrlimit(resource.RLIMIT_DATA, (limit, highest))
