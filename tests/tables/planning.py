"""Jobs that plan one step at a time, in any order that a test wants, and an input that changes under them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.tables import sources
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.plan import extend_plan
from fcn_ray.tables.sources import Listing, Source, list_inputs
from tests.tables.making import write_images, write_table

TABLE_ROWS = 5
Version = tuple[str, str, int]
"""Path, version and row of an image."""


class Folder:
    """An input whose files are added, changed and deleted; it remembers every version that a planner can have seen."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock, self.seen = root, itertools.count(1), set[Version]()
        (root / "in").mkdir()

    def write(self, names: set[str]) -> None:
        for name in sorted(names):
            path = self.root / "in" / name
            if path.suffix == ".parquet":
                write_table(path, TABLE_ROWS, group=2)
            else:
                write_images(self.root / "in", name)
            os.utime(path, ns=(0, next(self.clock)))
        self.seen |= self.versions()

    def restore(self, names: set[str]) -> None:
        """Files that are there get a version back that they had before."""
        for name in sorted(names):
            path = self.root / "in" / name
            if path.exists():
                times = sorted(int(version.rpartition("-")[2]) for known, version, _ in self.seen if known == name)
                os.utime(path, ns=(0, times[len(times) // 2]))

    def delete(self, names: set[str]) -> None:
        for name in names:
            (self.root / "in" / name).unlink(missing_ok=True)

    def versions(self) -> set[Version]:
        return {
            (source.path, source.version, row)
            for source in list_inputs(f"{self.root}/in")
            for row in range(TABLE_ROWS if source.kind == "parquet" else 1)
        }


class _DiedError(BaseException):
    """The end of a job that is killed."""


class Planner:
    """A job that plans in a thread of its own, which waits before each input that it lists and around each put."""

    def __init__(self, root: Path, rows: int) -> None:
        self.ended = self._dies = False
        self.error: Exception | None = None
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._plan, args=(root, rows), daemon=True)
        self._thread.planner = self  # type: ignore[attr-defined]
        self._thread.start()

    def step(self) -> None:
        """Go on to the next wait, or to the end."""
        self._go.release()
        self._waits.acquire()

    def finish(self) -> None:
        while not self.ended:
            self.step()

    def die(self) -> None:
        """Do nothing any more."""
        self._dies = True
        self.finish()

    def _plan(self, root: Path, rows: int) -> None:
        self._go.acquire()
        try:
            extend_plan(f"{root}/run", f"{root}/in", ChunkConfig(rows=rows), Columns(), self._put)
        except _DiedError:
            pass
        except Exception as error:
            self.error = error
        self.ended = True
        self._waits.release()

    def wait(self) -> None:
        if self._dies:
            raise _DiedError
        self._waits.release()
        self._go.acquire()
        if self._dies:
            raise _DiedError

    def _put(self, uri: str, data: bytes) -> bool:
        self.wait()
        written = storage.put_if_absent(uri, data)
        self.wait()
        return written


def list_slowly(uri: str, listing: Listing | None = None) -> Iterator[Source]:
    """`list_inputs`, with a wait of the planner whose thread this is before each input."""
    planner = getattr(threading.current_thread(), "planner", None)
    for source in sources.list_inputs(uri, listing):
        if planner is not None:
            planner.wait()
        yield source
