"""One trial of a fault: an input of its own, jobs over it, and what became of every row."""

from __future__ import annotations

import io
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fcn_ray import storage
from fcn_ray.images.codec import encode_image
from fcn_ray.tables.audit import audit
from tests.benchmarks.null_model import PAUSE, predict_mask

ROOT = Path(__file__).parents[2]
FINAL_ROWS = {"ok", "crash", "timeout", "too_big", "unreadable", "changed"}
GOES_ON = {1, 4, 9, -9, -15, 130, 143, 15}
"""Codes of disturbed jobs; the same command is run again."""
COMPLETE = {0, 3}
MOST_RERUNS = 4
CHUNK = 4
Key = tuple[str, int]


class Trial:
    """`root/in` holds 16 rows of a table and 16 files; jobs write to `output` (`root/out`, or a bucket)."""

    def __init__(self, root: Path, seed: int, bundle: str) -> None:
        self.root, self.bundle, self.random = root, bundle, random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self.input, self.output = str(root / "in"), str(root / "out")
        self.environment: dict[str, str] = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), PAUSE: "0.3"}
        self.settings = [f"chunk.rows={CHUNK}", "max_bad_fraction=1"]
        self.masks: dict[Key, list[np.ndarray | None]] = {}
        """What each image must give, one entry for a version; None where it may have no mask."""
        self.codes: list[int] = []
        self.drivers: list[int] = []
        """Process ids of the jobs, after which Ray names its folders."""
        self.struck = False
        """Whether what was to disturb a job did."""
        self.stack = ExitStack()

    def __enter__(self) -> Trial:
        (self.root / "in").mkdir(parents=True)
        self.write_table("t.parquet", 16)
        for number in range(16):
            self.write_image(f"{number:02}.png")
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    # ------------------------------------------------------------------------------------------------- the input

    def draw(self) -> np.ndarray:
        """A picture of noise."""
        size = (*self.noise.integers(20, 60, 2), 3)
        return self.noise.integers(0, 255, size, np.uint8)

    def write_image(self, name: str, data: bytes | None = None) -> None:
        """A new file, or a new version of one; `data` is a picture that need have no mask."""
        image = self.draw()
        self.masks.setdefault((name, 0), []).append(predict_mask(image) if data is None else None)
        self._write(name, encode_image(image, "PNG") if data is None else data)

    def write_table(self, name: str, rows: int) -> None:
        """A table in row groups of 5."""
        images = [self.draw() for _ in range(rows)]
        for row, image in enumerate(images):
            self.masks.setdefault((name, row), []).append(predict_mask(image))
        sink = io.BytesIO()
        pq.write_table(pa.table({"image": [encode_image(i, "PNG") for i in images]}), sink, row_group_size=5)
        self._write(name, sink.getvalue())

    def _write(self, name: str, data: bytes) -> None:
        path = self.root / "in" / name
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(data)
        temporary.replace(path)

    # --------------------------------------------------------------------------------------------------- jobs

    def start(self, **environment: str) -> psutil.Popen:
        """A job in a session of its own."""
        settings = [part for setting in self.settings for part in ("--set", setting)]
        command = ["segment", self.input, self.output, "--model", self.bundle, *settings]
        log = (self.root / f"job-{len(self.codes)}.log").open("ab")
        job = psutil.Popen(
            [sys.executable, "-m", "tests.benchmarks.null_model", *command],
            env={**os.environ, **self.environment, **environment},
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.drivers.append(job.pid)
        return job

    def end(self, job: psutil.Popen, seconds: float = 240) -> int:
        """Wait for a job, and kill what is left of it: its code. One that hangs is an error."""
        try:
            code = int(job.wait(seconds))
        except psutil.TimeoutExpired as error:
            self.kill_all(job)
            raise TimeoutError(f"a job took more than {seconds} seconds") from error
        kill_session(job.pid)
        self.codes.append(code)
        return code

    def kill_all(self, job: psutil.Popen) -> None:
        """The job with all its processes, at once."""
        kill_session(job.pid)
        self.codes.append(int(job.wait(30)))

    def wait_for(self, done: Callable[[], bool], job: psutil.Popen, seconds: float = 120) -> bool:
        """Until `done`; False when the job ended before."""
        end = time.monotonic() + seconds
        while is_running(job) and time.monotonic() < end:
            if done():
                return True
            time.sleep(0.02)
        return done()

    def wait_for_chunks(self, job: psutil.Popen) -> bool:
        """A random number of chunks is committed, and a random moment later; whether the job is still at it."""
        wanted = self.random.randint(1, 4)
        self.wait_for(lambda: self.count_chunks() >= wanted, job)
        time.sleep(self.random.uniform(0, 0.5))
        return is_running(job)

    def was_logged(self, text: str) -> bool:
        """Whether a job of this trial wrote this, or a process of its Ray."""
        logs = [*self.root.glob("job-*.log")]
        for driver in self.drivers:
            logs += Path("/tmp/ray").glob(f"session_*_{driver}/logs/worker-*.err")
        return any(text.encode() in log.read_bytes() for log in logs)

    def count_chunks(self) -> int:
        """Mask files that there are."""
        return sum("/masks/" in f"/{entry.path}" for entry in storage.list_files(self.output))

    def find(self, job: psutil.Popen, *names: str) -> list[psutil.Process]:
        """Processes of a job whose title or command has one of `names` in it."""
        found = []
        for process in session(job.pid):
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if any(name in title for name in names):
                found.append(process)
        return found

    def kill_one(self, job: psutil.Popen, *names: str) -> bool:
        """SIGKILL to a random one of these, when there is one in time."""
        if not self.wait_for(lambda: bool(self.find(job, *names)), job):
            return False
        victims = self.find(job, *names)
        if victims:
            self.random.choice(victims).kill()
        return bool(victims)

    # --------------------------------------------------------------------------------------------- the outcome

    def complete(self) -> dict[str, Any]:
        """Run the job again until it is complete; then count what is wrong."""
        for _ in range(MOST_RERUNS):
            if self.end(self.start()) in COMPLETE:
                break
        else:
            raise AssertionError(f"not complete after {MOST_RERUNS} runs: {self.codes}")
        before = self.count_chunks()
        if self.end(self.start()) not in COMPLETE or self.count_chunks() != before:
            raise AssertionError("a finished job did something")
        if strange := set(self.codes) - COMPLETE - GOES_ON:
            raise AssertionError(f"jobs ended with {strange}")
        report = audit(self.output)
        lost, doubled, torn = self._compare()
        findings = [f"{finding.kind} {finding.where}: {finding.message}" for finding in report.findings][:5]
        detail = {"audit": findings} if findings else {}
        return {"lost": lost, "doubled": doubled, "torn": torn, "findings": report.n_findings, **detail}

    def _rows(self) -> Iterator[dict[str, Any]]:
        for entry in storage.list_files(self.output):
            if "/masks/" in f"/{entry.path}":
                data = storage.read_bytes(storage.join(self.output, entry.path))
                yield from pq.read_table(io.BytesIO(data)).to_pylist()

    def _compare(self) -> tuple[int, int, int]:
        """Rows lost, doubled, torn. Every version that lived long enough has a row; the last one has its mask."""
        rows: dict[Key, list[dict[str, Any]]] = {}
        for row in self._rows():
            self.struck |= row["status"] != "ok"
            rows.setdefault((row["path"], row["row"]), []).append(row)
        lost = doubled = torn = 0
        for key, versions in self.masks.items():
            found = sorted(rows.pop(key, []), key=lambda row: row["plan"])
            lost += not found
            doubled += max(0, len(found) - len(versions))
            doubled += sum(times - 1 for times in Counter(row["plan"] for row in found).values())
            torn += bool(found) and not _is_right(found[-1], versions[-1])
        return lost, doubled + sum(map(len, rows.values())), torn


def _is_right(row: dict[str, Any], mask: np.ndarray | None) -> bool:
    if mask is None:
        return row["status"] in FINAL_ROWS
    if row["status"] != "ok":
        return False
    return np.array_equal(np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"]))), mask)


def is_running(job: psutil.Process) -> bool:
    """Not ended, whether somebody has waited for it or not."""
    try:
        return bool(job.is_running() and job.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # in between
        return False


def session(leader: int) -> list[psutil.Process]:
    """All processes that a job started, those of its Ray included."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
        except (psutil.Error, OSError):
            continue
    return list(found.values())


def kill_session(leader: int) -> None:
    """SIGKILL to all of them, until there is none."""
    for _ in range(20):
        alive = [process for process in session(leader) if is_running(process)]
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        if not alive:
            return
        time.sleep(0.1)
