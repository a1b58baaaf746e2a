"""A command and all that it starts: CPU seconds, also of what has ended, and peak memory. Linux only."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CPU_EVERY, MEMORY_EVERY = 0.5, 1.0
"""Seconds between looks, which take some 2 % of a core; to tell memory the kernel walks all pages."""

LIMIT_SECONDS = 1800
"""A command that takes longer is killed."""

END_SECONDS = 20
"""What is still there so long after the command has ended is killed."""

_TICKS = os.sysconf("SC_CLK_TCK")
_SUBREAPER = 36


@dataclass
class Usage:
    """What a command has used."""

    code: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    """Largest sum of the proportional set sizes of all its processes: what they share counts once."""
    spilled_bytes: int = 0
    """Most that Ray had moved from its object store to the disk."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(time.monotonic(), CPU seconds up to then)."""

    def cpu_between(self, start: float, end: float) -> float:
        """CPU seconds between two moments of time.monotonic()."""
        times, seconds = zip(*self.curve, strict=True)
        first, last = np.interp([start, end], times, seconds)
        return float(last - first)


def run(command: list[str], environment: Mapping[str, str], folder: Path, log: Path) -> Usage:
    """Run it in `folder` until all of its processes are gone; its output goes to `log`.out and `log`.err.

    The longer of two measures of CPU time counts, for both miss some: looks every half second miss the end of
    each process, and the kernel's sum those that nobody has waited for.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # a process whose parent has ended becomes ours
    usage, seen = Usage(), dict[tuple[int, int], float]()
    waited_before = _waited()
    with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)
        next_memory = start
        while True:
            with suppress(subprocess.TimeoutExpired):
                usage.code = process.wait(CPU_EVERY)
                break
            now = time.monotonic()
            if now > start + LIMIT_SECONDS:
                process.kill()
            pids = _look(seen)
            usage.curve.append((now, sum(seen.values())))
            if now >= next_memory:
                usage.peak_bytes = max(usage.peak_bytes, sum(map(_pss, pids)))
                usage.spilled_bytes = max(usage.spilled_bytes, _spilled())
                next_memory = now + MEMORY_EVERY
        usage.seconds = time.monotonic() - start
    _end(seen)
    usage.curve.append((time.monotonic(), sum(seen.values())))
    usage.cpu_seconds = max(sum(seen.values()), _waited() - waited_before)
    return usage


def _look(seen: dict[tuple[int, int], float]) -> list[int]:
    """Our descendants; their CPU seconds go into `seen` by (pid, start time)."""
    parents, times = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                parents[int(name)] = int(fields[1])
                times[int(name)] = int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICKS
    found, young = [], [os.getpid()]
    while young:
        young = [pid for pid, parent in parents.items() if parent in young]
        found += young
    for pid in found:
        began, seconds = times[pid]
        seen[pid, began] = seconds
    return found


def _end(seen: dict[tuple[int, int], float]) -> None:
    """Wait for what has outlived the command, and kill it when it does not end."""
    end = time.monotonic() + END_SECONDS
    while pids := _look(seen):
        for pid in pids:
            if time.monotonic() > end:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):  # a grandchild: its parent is still there
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)


def _waited() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spilled() -> int:
    """Bytes that Rays of this machine have on disk in the place of their object stores."""
    found = 0
    for path in Path("/tmp/ray").glob("session_*/ray_spilled_objects*/*"):
        with suppress(OSError):
            found += path.stat().st_size
    return found


def _pss(pid: int) -> int:
    """Bytes; 0 for a process that has just ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
