"""Who is said to work on a run, from what is stored, and that nothing depends on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fcn_ray import storage
from fcn_ray.errors import UnavailableError
from fcn_ray.tables.lock import LOCK_SECONDS, RunLock

NOW = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _read(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "lock.json").read_text())
    return found


def test_the_lock_says_who_and_until_when(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "02000000")
    monkeypatch.setenv("LOGNAME", "nightly")
    monkeypatch.setattr("platform.node", lambda: "head-1")
    mine = RunLock(str(tmp_path), clock)
    mine.renew()
    found = _read(tmp_path)
    assert found["owner"].pop("id")
    assert found == {
        "owner": {"host": "head-1", "pid": os.getpid(), "user": "nightly", "job": "02000000"},
        "started": NOW,
        "expires": NOW + LOCK_SECONDS,
    }
    clock.now += 30
    assert mine.find_other() is None
    other = RunLock(str(tmp_path), clock).find_other()
    assert other == (
        f"nightly on head-1 (process {os.getpid()}, Ray job 02000000), who was last heard of 30 seconds ago"
    )
    mine.renew()
    assert (_read(tmp_path)["started"], _read(tmp_path)["expires"]) == (NOW, NOW + 30 + LOCK_SECONDS)


def test_another_job_takes_it_over_when_its_owner_ends_or_is_silent(tmp_path: Path, clock: Clock) -> None:
    first, second = RunLock(str(tmp_path), clock), RunLock(str(tmp_path), clock)
    first.renew()
    second.renew()
    assert second.find_other() is not None, "it stays the first one's"
    second.release()
    assert second.find_other() is not None, "nobody releases another's"
    first.release()
    assert second.find_other() is None
    second.renew()
    assert first.find_other() is not None
    clock.now += LOCK_SECONDS - 1
    assert first.find_other() is not None
    clock.now += 1
    assert first.find_other() is None
    first.renew()
    assert second.find_other() is not None


def test_a_process_of_this_machine_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    code = "import sys; from fcn_ray.tables.lock import RunLock; RunLock(sys.argv[1]).renew(); print('held')"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert killed.stdout == "held\n"
    assert RunLock(str(tmp_path)).find_other() is None
    found = _read(tmp_path)
    found["owner"]["pid"] = os.getppid()
    (tmp_path / "lock.json").write_text(json.dumps(found))
    assert RunLock(str(tmp_path)).find_other() is not None
    found["owner"] |= {"pid": 2**22 + 1, "host": "elsewhere"}
    (tmp_path / "lock.json").write_text(json.dumps(found))
    assert RunLock(str(tmp_path)).find_other() is not None, "of other machines only the time tells"


@pytest.mark.parametrize(
    "change",
    [
        lambda lock: lock.update(expires=NOW + 2 * LOCK_SECONDS + 1),
        lambda lock: lock.update(expires="soon"),
        lambda lock: lock.update(expires=float("nan")),
        lambda lock: lock.pop("owner"),
        lambda lock: lock.update(owner="me"),
        lambda lock: lock["owner"].update(pid="x"),
        lambda lock: lock["owner"].update(pid=-1),
    ],
)
def test_a_lock_that_cannot_be_meant_is_none(
    tmp_path: Path, clock: Clock, change: Callable[[dict[str, Any]], Any]
) -> None:
    """Clocks that went back by hours, other programs' files, and processes that cannot be."""
    RunLock(str(tmp_path), clock).renew()
    found = _read(tmp_path)
    change(found)
    (tmp_path / "lock.json").write_text(json.dumps(found))
    mine = RunLock(str(tmp_path), clock)
    assert mine.find_other() is None
    mine.renew()
    assert _read(tmp_path)["expires"] == NOW + LOCK_SECONDS


def test_what_is_no_json_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("{")
    assert RunLock(str(tmp_path)).find_other() is None


def test_a_lock_that_cannot_be_written_or_read_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock.json").mkdir()
    mine = RunLock(str(tmp_path))
    assert mine.find_other() is None
    mine.renew()
    mine.release()

    def silent(uri: str) -> bytes:
        raise UnavailableError("the store does not answer")

    monkeypatch.setattr(storage, "read_bytes", silent)
    mine.renew()
    mine.release()
    with pytest.raises(UnavailableError):
        mine.find_other()
