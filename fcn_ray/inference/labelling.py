"""Following a job while it labels: receipts as they come, one progress line, status.json, and the limits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing

from fcn_ray.inference.bad_limits import BadLimits
from fcn_ray.inference.status import JobStatus
from fcn_ray.reports.progress import Progress
from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.schema import OK


class Labelling:
    """What has come out of the pipeline so far; `start` is when the job began, on the monotonic clock."""

    def __init__(self, start: float) -> None:
        self.receipts: list[Receipt] = []
        self.statuses: Counter[str] = Counter()
        self.first_commit_seconds: float | None = None
        self.images_per_second: float | None = None
        self.found = 0
        """Images whose result was there when this job came to store it."""
        self.stopped: str | None = None
        """Why it ended before the pipeline did."""
        self._start = start

    @property
    def done(self) -> int:
        """Images that have a result."""
        return self.statuses.total()

    @property
    def stored(self) -> int:
        """Those of them that this job stored itself."""
        return self.done - self.found

    @property
    def bad(self) -> int:
        """Those of them without a mask."""
        return self.done - self.statuses[OK]

    def follow(self, receipts: Generator[Receipt], todo: int, limits: BadLimits, status: JobStatus) -> None:
        """Take receipts as they come, up to the end or a limit; the generator is closed in any case."""
        first, first_time = 0, self._start
        progress = Progress(todo, write_status=lambda facts: status.write("running", **facts))
        with closing(receipts), progress:
            for receipt in receipts:
                self.receipts.append(receipt)
                self.statuses.update(receipt.statuses)
                self.found += 0 if receipt.written else receipt.n_rows
                now = time.monotonic()
                if self.first_commit_seconds is None:
                    first, first_time = self.stored, now
                    self.first_commit_seconds = now - self._start
                elif now > first_time:
                    self.images_per_second = (self.stored - first) / (now - first_time)
                progress.update(self.done, self.bad)
                self.stopped = limits.add(receipt) if receipt.written else None
                if self.stopped:
                    return
