"""What a job is doing, for whoever cannot see its exit code: status.json, and the lock, both kept fresh meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any

from fcn_ray import storage
from fcn_ray.errors import OutOfReachError, StorageError
from fcn_ray.tables.lock import LOCK_SECONDS, RunLock
from fcn_ray.tables.runs import Run, write_status

logger = logging.getLogger(__name__)

RENEW_SECONDS = 30.0
"""Longest time between two signs of life."""

PATIENCE_SECONDS = 5.0
"""With a store that fails: a job that ends for it has waited already, and a sign of life comes again."""

_GOING_ON = {"planning", "running"}


class JobStatus:
    """The status of a job from `with` to its end.

    While it is planning or running the file says when it `expires`: a job that was killed stops renewing that, so a
    state that has expired is one nobody works on any more.
    """

    def __init__(self, run: Run, lock: RunLock) -> None:
        self._run, self._lock = run, lock
        self._facts: dict[str, Any] = {"run": run.run_id, "input": run.input, "started": time.time()}
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="status", daemon=True)

    def __enter__(self) -> JobStatus:
        self._renew_lock()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=5)  # it must not renew what is released; a store that is silent is not waited for
        if not isinstance(error, OutOfReachError):  # else its patience would be spent once more
            with storage.with_patience(PATIENCE_SECONDS):
                self._lock.release()

    def write(self, state: str, **facts: Any) -> None:
        """`state` is planning, running, complete, stopped or failed. A status that cannot be written stops no job."""
        with self._writing:
            self._facts |= {"state": state, "updated": time.time(), **facts}
            self._put()

    def _put(self) -> None:
        """The facts, and how long they hold."""
        expires = {"expires": time.time() + LOCK_SECONDS} if self._facts["state"] in _GOING_ON else {}
        try:
            with storage.with_patience(PATIENCE_SECONDS):
                write_status(self._run, self._facts | expires)
        except StorageError as error:
            logger.warning("status.json is not current: %s", error)

    def _renew_lock(self) -> None:
        with storage.with_patience(PATIENCE_SECONDS):
            self._lock.renew()

    def _renew(self) -> None:
        """In a thread of its own: while a job lists its input, or waits for the first chunk, it has nothing to say."""
        while not self._ended.wait(RENEW_SECONDS):
            self._renew_lock()
            with self._writing:
                if "state" in self._facts:
                    self._put()
