"""Who works on a run: `lock.json`, so that a second job can say so, or leave it be.

It informs. Two jobs at once do no harm, so nothing rests on it: not on its being there, not on clocks that agree.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from fcn_ray import storage
from fcn_ray.errors import OutOfReachError, StorageError

LOCK_SECONDS = 300.0
"""How long a job that says nothing more counts as running."""


class RunLock:
    """This job's claim to a run."""

    def __init__(self, run_uri: str, clock: Callable[[], float] = time.time) -> None:
        self._uri, self._clock = storage.join(run_uri, "lock.json"), clock
        self._owner = {"id": secrets.token_hex(8), "host": platform.node(), "pid": os.getpid(), "user": _user()}
        if job := os.environ.get("RAY_JOB_ID"):
            self._owner["job"] = job
        self._started = clock()

    def find_other(self) -> str | None:
        """Who else works on the run by what is stored, in words; None when nobody does, or nobody is known to.

        Raises OutOfReachError when the store does not answer.
        """
        found = self._read()
        if found is None or found["owner"].get("id") == self._owner["id"] or self._has_ended(found):
            return None
        owner, left = found["owner"], found["expires"] - self._clock()
        job = f", Ray job {owner['job']}" if "job" in owner else ""
        who = f"{owner.get('user')} on {owner.get('host')} (process {owner.get('pid')}{job})"
        return f"{who}, who was last heard of {max(0.0, LOCK_SECONDS - left):.0f} seconds ago"

    def renew(self) -> None:
        """Say that this job goes on, unless another one does. A lock that cannot be written is none."""
        with contextlib.suppress(StorageError):
            if self.find_other() is None:
                self._put(self._clock() + LOCK_SECONDS)

    def release(self) -> None:
        """Say that this job has ended, if the lock is its own."""
        with contextlib.suppress(StorageError):
            found = self._read()
            if found is not None and found["owner"].get("id") == self._owner["id"]:
                self._put(self._clock())

    def _has_ended(self, found: Mapping[str, Any]) -> bool:
        """True when the time is over, or lies too far ahead to be meant, or the process was here and is gone."""
        owner = found["owner"]
        if not 0 < found["expires"] - self._clock() <= 2 * LOCK_SECONDS:
            return True
        return owner.get("host") == self._owner["host"] and not _is_running(owner.get("pid"))

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(storage.read_bytes(self._uri))
            found["owner"].get("id"), float(found["expires"])
            return dict(found)
        except OutOfReachError:
            raise
        except (StorageError, ValueError, KeyError, TypeError, AttributeError):  # none, or none that can be understood
            return None

    def _put(self, expires: float) -> None:
        text = json.dumps({"owner": self._owner, "started": self._started, "expires": expires}, indent=1)
        storage.replace(self._uri, f"{text}\n".encode())


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())


def _is_running(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
