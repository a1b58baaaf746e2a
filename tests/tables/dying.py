"""Jobs without Ray that die at failpoints: one process that has imported everything, of which each job is a fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.failpoints import VARIABLE
from fcn_ray.tables.audit import audit
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import extend_plan, pending_chunks
from fcn_ray.tables.runs import open_run, write_status
from tests.tables.making import IDENTITY, LABELS, png, result_rows, write_table

NIGHTS = (("b.png", "d.png", "t.parquet"), ("a.png", "c.png"))
"""Inputs that each night adds, before and between the old ones."""
TABLE_ROWS = 2
IMAGES = 4 + TABLE_ROWS


@dataclass(frozen=True)
class Ended:
    """How a job ended: 0 in success, 1 by an exception, -9 by SIGKILL; the failpoint where it did; its puts."""

    code: int
    failpoint: str | None
    puts: list[tuple[str, bool]]
    errors: str


class Jobs:
    """Starts jobs over `root/in` with their output in `root/out`."""

    def __enter__(self) -> Jobs:
        command = [sys.executable, "-m", "tests.tables.dying"]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, root: Path, *failpoints: str | None, times: int = 1) -> list[Ended]:
        """How jobs that start together ended; those that hang are killed when the others are at their end.

        A process does its job `times` times.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(root), failpoints, times]), file=self._process.stdin, flush=True)
        return [_ended(code, text) for code, text in json.loads(self._process.stdout.readline())]


def _ended(code: int, text: str) -> Ended:
    lines = [line.split(" ", 1) for line in text.splitlines()]
    puts = [line[1].rsplit(" ", 1) for line in lines if line[0] == "put"]
    reached = next((line[1] for line in lines if line[0] == "failpoint"), None)
    errors = "\n".join(" ".join(line) for line in lines if line[0] not in {"put", "failpoint"})
    return Ended(code, reached, [(name, written == "True") for name, written in puts], errors)


# ------------------------------------------------------------------------------------------------ in the other process


def _serve() -> None:
    pa.set_cpu_count(1)
    pa.table({"image": [png(1)]})  # pyarrow imports pandas, and Pillow its formats, when they are first used
    os.fsync = lambda descriptor: None  # the death of a process loses nothing of a file, flushed or not
    for line in sys.stdin:
        root, failpoints, times = json.loads(line)
        work = [partial(_label, Path(root), rows, times) for rows in (2, 1)]
        jobs = [_fork(*job) for job in zip(work, failpoints, strict=False)]
        texts = [_read(pipe) for _, pipe in jobs]
        for job, _ in jobs:
            os.kill(job, signal.SIGKILL)  # those that ended are past it
        codes = [os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) for job, _ in jobs]
        print(json.dumps(list(zip(codes, texts, strict=True))), flush=True)


def _fork(work: Callable[[], None], failpoint: str | None) -> tuple[int, int]:
    """The process of a job, and where to read its stderr."""
    reading, writing = os.pipe()
    job = os.fork()
    if job:
        os.close(writing)
        return job, reading
    os.dup2(writing, 2)
    os.close(writing)
    if failpoint:
        os.environ[VARIABLE] = failpoint
    code = 1
    try:
        _tell_puts()
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _read(pipe: int) -> str:
    """What a job says, until it ends or hangs."""
    text = b""
    while not text.endswith(b":hang\n") and (part := os.read(pipe, 1 << 16)):
        text += part
    os.close(pipe)
    return text.decode()


def _tell_puts() -> None:
    put = storage.put_if_absent

    def tell(uri: str, data: bytes) -> bool:
        written = put(uri, data)
        os.write(2, f"put {uri.rpartition('=')[2].partition('/')[2]} {written}\n".encode())
        return written

    storage.put_if_absent = tell


def _label(root: Path, rows: int, times: int) -> None:
    """The jobs of two nights, one after the other, as fcn_ray.inference.job has them, and an audit after each."""
    for names in NIGHTS * times:
        _add_inputs(root / "in", names)
        run = open_run(str(root / "out"), str(root / "in"), IDENTITY, LABELS)
        write_status(run, {"state": "planning"})
        log = extend_plan(run.uri, run.input, ChunkConfig(rows=rows), Columns(), storage.put_if_absent)
        pending = list(pending_chunks(log))
        finish(run, log, [commit_chunk(run, result_rows(run, ref, Columns())) for ref in pending])
        write_status(run, {"state": "complete"})
        assert audit(str(root / "out")).findings == []


def _add_inputs(folder: Path, names: tuple[str, ...]) -> None:
    """The same versions, whichever job adds them, and none of them half written."""
    for name in names:
        path, made = folder / name, folder / f".{os.getpid()}-{name}"
        if path.exists():
            continue
        if path.suffix == ".parquet":
            write_table(made, TABLE_ROWS)
        else:
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_bytes(png(1))
        os.utime(made, ns=(0, 1))
        made.rename(path)


def rows_of(root: Path) -> list[tuple[str, int]]:
    """(path, row) of every result row in `root/out`."""
    rows = []
    for path in sorted((root / "out").glob("run=*/masks/*.parquet")):
        table = pq.read_table(path, columns=["path", "row"])
        rows += list(zip(table["path"].to_pylist(), table["row"].to_pylist(), strict=True))
    return rows


if __name__ == "__main__":
    _serve()
