"""The real code of a labelling job, one request to the store at a time, for the search of tests/tables/model.py.

A job is a function of the answers that it has had. So a function of it is run from its start with the answers so far,
until it asks for one more; what it asks is kept in a tree of answers, and is never computed again.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import StorageError
from fcn_ray.tables import seal
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt, commit_chunk
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import PlanLog, extend_plan, pending_chunks
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run, fingerprint, open_run, run_uri
from tests.tables.making import IDENTITY, LABELS, result_rows

IN, OUT = "/in", "/out"
RUN = Run(run_uri(OUT, fingerprint(IDENTITY, LABELS)), fingerprint(IDENTITY, LABELS), IN, LABELS)

Request = tuple[Any, ...]
"""What a job asks of the store: read, is_file, files, folders, put or replace; the URI; the bytes when it writes."""
ERROR = "error"
"""Answer to a write that was perhaps done: the job sees a StorageError."""


class LostReplyError(StorageError):
    """What a job sees of the answer ERROR."""


class Frame(NamedTuple):
    """Where a job is: its driver, the function it is in, and what the functions before gave it."""

    driver: str
    phase: str = "open"
    log: tuple[int, int, int] = (0, 0, 0)
    todo: tuple[ChunkRef, ...] = ()
    receipts: tuple[tuple[Any, ...], ...] = ()


@dataclass(eq=False, slots=True)
class Node:
    """A function after some answers: what it asks next, or how it ended."""

    answers: tuple[Hashable, ...] = ()
    request: Request | None = None
    ended: bool = False
    result: Any = None
    error: Exception | None = None
    next: dict[Hashable, Node] = field(default_factory=dict)

    def after(self, answer: Hashable) -> Node:
        """The node that this answer leads to."""
        if answer not in self.next:
            self.next[answer] = Node((*self.answers, answer))
        return self.next[answer]


class _Pause(BaseException):
    """The job asks for what it has no answer to; no `except Exception` of its own may catch that."""


class Code:
    """Runs the functions of jobs, with this in the place of fcn_ray.storage.

    The input's files are not modelled, only its listing: all that are asked for are there, and empty.
    """

    def __init__(self, patch: pytest.MonkeyPatch, put_plan: Callable[[str, bytes], bool] | None = None) -> None:
        self.driver = ""
        """Whose code is running."""
        self.alike = True
        """Drivers differ by the chunks that they plan and the masks that they make, and by nothing else."""
        self.runs = 0
        self._put_plan = put_plan
        self._roots: dict[Hashable, Node] = {}
        self._ask: Callable[[Request], Any]
        for name in ("exists", "is_file", "stat", "list_files", "list_folders", "read_bytes", "open_file"):
            patch.setattr(storage, name, getattr(self, name))
        for name in ("absolute", "put_if_absent", "replace"):
            patch.setattr(storage, name, getattr(self, name))
        patch.setattr(pq, "ParquetFile", lambda file, **options: _remembered(file.getvalue()))
        patch.setattr(seal, "is_broken", cache(seal.is_broken))

    def root(self, frame: Frame) -> Node:
        """Where the function of a frame begins; frames that cannot behave differently share it."""
        log = frame.log if frame.phase in {"pending", "finish"} else None
        receipts = frame.receipts if frame.phase == "finish" else None
        driver = None if self.alike and frame.phase in {"open", "pending", "finish"} else frame.driver
        return self._roots.setdefault((driver, frame.phase, log, frame.todo[:1], receipts), Node())

    def run(self, frame: Frame, node: Node, answer: Callable[[Request], Hashable | None]) -> Node:
        """Run the function of `frame` past `node`, to where `answer` has none, or to its end."""
        self.runs += 1
        given, here = deque(node.answers), self.root(frame)

        def ask(request: Request) -> Hashable:
            nonlocal here
            if here.request is None:
                here.request = request
            assert here.request == request, "a job must be a function of the answers that it had"
            found = given.popleft() if given else answer(request)
            if found is None:
                raise _Pause
            here = here.after(found)
            return found

        self._ask, self.driver = ask, frame.driver
        try:
            here.result, here.ended = self._call(frame), True
        except _Pause:
            pass
        except Exception as error:
            here.error, here.ended = error, True
        return here

    def _call(self, frame: Frame) -> Any:
        log = PlanLog(RUN.uri, *frame.log)
        if frame.phase == "open":
            return open_run(OUT, IN, IDENTITY, LABELS)
        if frame.phase == "plan":
            limits = ChunkConfig(rows={"A": 1, "B": 2}[frame.driver])
            return extend_plan(RUN.uri, IN, limits, Columns(), self._put_plan or self.put_if_absent)
        if frame.phase == "pending":
            return tuple(pending_chunks(log))
        if frame.phase == "commit":
            chunk = frame.todo[0]
            confidence = {"A": 0.25, "B": 0.5}[frame.driver]  # as two GPUs may differ: other bytes
            return commit_chunk(RUN, result_rows(RUN, chunk, Columns(), mean_confidence=[confidence] * chunk.n_rows))
        return finish(RUN, log, [Receipt(*cells[:4], dict(cells[4]), written=True) for cells in frame.receipts])

    # ------------------------------------------------------------------------------- what stands for fcn_ray.storage

    def absolute(self, uri: str) -> str:
        return uri

    def exists(self, uri: str) -> bool:
        return True

    def is_file(self, uri: str) -> bool:
        return uri not in {IN, OUT} and self._ask(("is_file", uri)) is True

    def stat(self, uri: str) -> storage.Entry:
        return storage.Entry(uri, 0, "1")

    def list_files(self, uri: str, on_skip: Callable[[storage.Skipped], None] | None = None) -> Iterator[storage.Entry]:
        return iter([storage.Entry(name, 0, version) for name, version in self._ask(("files", uri))])

    def list_folders(self, uri: str) -> list[str]:
        return list(self._ask(("folders", uri)))

    def read_bytes(self, uri: str) -> bytes:
        if uri.startswith(f"{IN}/"):
            return b""
        data: bytes = self._ask(("read", uri))
        if not data:
            raise StorageError(f"{uri} is not there")
        return data

    def open_file(self, uri: str) -> io.BytesIO:
        return io.BytesIO(self.read_bytes(uri))

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        return self._write(("put", uri, data)) is True

    def replace(self, uri: str, data: bytes) -> None:
        self._write(("replace", uri, data))

    def _write(self, request: Request) -> Any:
        answer = self._ask(request)
        if answer == ERROR:
            raise LostReplyError(f"{request[1]}: the reply was lost")
        return answer


class _Remembered:
    """A Parquet file of which each part is decoded once, however often the code reads the same bytes."""

    def __init__(self, data: bytes) -> None:
        file = _ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        self.metadata, self.schema_arrow, self.num_row_groups = file.metadata, file.schema_arrow, file.num_row_groups
        self._group = cache(lambda group, columns: file.read_row_group(group, columns=columns and list(columns)))

    def read_row_group(self, group: int, columns: list[str] | None = None) -> Any:
        return self._group(group, columns and tuple(columns))

    def read(self, columns: list[str]) -> Any:
        return self.read_row_group(0, columns)


_ParquetFile = pq.ParquetFile
_remembered = cache(_Remembered)


def following(frame: Frame, result: Any) -> Frame | None:
    """The frame after a function has ended; None after the last. As in fcn_ray.inference.job, without Ray."""
    if frame.phase == "open":
        return frame._replace(phase="plan")
    if frame.phase == "plan":
        return frame._replace(phase="pending", log=(result.newest, result.chunks, result.rows))
    if frame.phase == "finish":
        return None
    if frame.phase == "pending":
        return frame._replace(phase="commit" if result else "finish", todo=result)
    receipt = (result.chunk_id, result.n_rows, result.size, result.sha256, tuple(result.statuses.items()))
    return to_next_chunk(frame._replace(receipts=(*frame.receipts, receipt)))


def to_next_chunk(frame: Frame) -> Frame:
    """The frame after the chunk at hand, or after the last."""
    return frame._replace(phase="commit" if frame.todo[1:] else "finish", todo=frame.todo[1:])
