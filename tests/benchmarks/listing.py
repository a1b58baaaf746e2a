"""Time and peak memory of planning a listing of many objects, without storage: a first plan, and one with nothing new.

python tests/benchmarks/listing.py WORK OBJECTS [OBJECTS ...]

The listing is made up as it is asked for, in a process of its own for each number; the plans are written to WORK. The
work after the plan is there too: how many chunks are pending, as a job asks before it starts.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.plan import count_chunks, extend_plan, pending_chunks

INPUT = "s3://photos/archive"
FOLDER_FILES = 10_000


def main() -> None:
    """Print seconds, objects/s and peak memory for each number of objects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("objects", type=int, nargs="+")
    parser.add_argument("--one", choices=["first plan", "nothing new", "pending"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _measure(arguments.work, arguments.objects[0], arguments.one)
        return
    for count in arguments.objects:
        shutil.rmtree(arguments.work, ignore_errors=True)
        for what in ("first plan", "nothing new", "pending"):
            command = [sys.executable, __file__, str(arguments.work), str(count), "--one", what]
            subprocess.run(command, check=True)


def _measure(work: Path, count: int, what: str) -> None:
    _list_photos(count)
    run, before = f"{work}/run", _peak()
    start, cpu = time.monotonic(), time.process_time()
    if what == "pending":
        log = extend_plan(run, INPUT, ChunkConfig(), Columns(), put=lambda uri, data: True)
        start, cpu = time.monotonic(), time.process_time()
        result = f"{len(list(pending_chunks(log)))} of {count_chunks(log).chunks} chunks"
    else:
        log = extend_plan(run, INPUT, ChunkConfig(), Columns())
        result = f"{log.newest} plans, {log.new_rows} images new"
    seconds, busy = time.monotonic() - start, time.process_time() - cpu
    print(
        f"{count} objects, {what}: {seconds:.0f} s ({busy:.0f} s of a core), {count / busy:.0f} objects/s of a core, "
        f"peak {_peak():.0f} MiB ({before:.0f} before), {result}",
        flush=True,
    )


def _peak() -> float:
    """Of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def _list_photos(count: int) -> None:
    """From now on the input holds so many photos, in folders of ten thousand."""
    stored = storage.list_files

    def list_files(uri: str, *arguments: Any) -> Iterator[storage.Entry]:
        return _photos(count) if uri == INPUT else stored(uri, *arguments)

    storage.list_files = list_files
    storage.is_file = lambda uri: uri != INPUT and Path(uri).is_file()
    storage.exists = lambda uri: True


def _photos(count: int) -> Iterator[storage.Entry]:
    for number in range(count):
        size = 60_000 + number * 7919 % 400_000
        path = f"{number // FOLDER_FILES:05}/camera-{number % FOLDER_FILES // 100:02}/photo-{number:010}.jpg"
        yield storage.Entry(path, size, f"{size}-{number * 0x9E3779B97F4A7C15 % 2**128:032x}")


if __name__ == "__main__":
    main()
