"""status.json and the lock while a job runs, and after it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fcn_ray import storage
from fcn_ray.errors import StorageError, UnavailableError
from fcn_ray.inference import status as module
from fcn_ray.inference.status import JobStatus
from fcn_ray.storage.answers import Passing, patiently
from fcn_ray.tables.lock import LOCK_SECONDS, RunLock
from fcn_ray.tables.runs import Run
from tests.tables.making import LABELS


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "feed", "/in", LABELS)


def _read(run: Run, name: str = "status.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run.uri) / name).read_text())
    return found


def test_a_state_that_goes_on_expires_and_one_that_is_final_does_not(run: Run) -> None:
    with JobStatus(run, RunLock(run.uri)) as status:
        status.write("running", done=3)
        found = _read(run)
        assert (found["run"], found["input"], found["state"], found["done"]) == ("feed", "/in", "running", 3)
        assert found["started"] <= found["updated"] <= time.time()
        assert found["expires"] == pytest.approx(found["updated"] + LOCK_SECONDS, abs=5)
        assert _read(run, "lock.json")["expires"] > time.time()
        status.write("complete", exit_code=0)
        assert "expires" not in _read(run)
    assert (_read(run)["state"], _read(run)["done"]) == ("complete", 3)
    assert _read(run, "lock.json")["expires"] <= time.time()


def test_signs_of_life_while_there_is_nothing_to_say(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while millions of files are listed: expiry moves on, and `updated` tells that nothing else did."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    with JobStatus(run, RunLock(run.uri)) as status:
        time.sleep(0.1)
        assert not (Path(run.uri) / "status.json").exists(), "there is no state yet"
        status.write("planning")
        first, lock = _read(run), _read(run, "lock.json")
        deadline = time.monotonic() + 20
        while _read(run)["expires"] == first["expires"] or _read(run, "lock.json")["expires"] == lock["expires"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert _read(run)["updated"] == first["updated"]
        status.write("failed", error="no")
        final = _read(run)
        time.sleep(0.1)
    time.sleep(0.05)
    assert _read(run) == final, "the last word is not said over"


def test_a_lock_is_not_renewed_once_it_is_released(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the thread may be in the midst of it when the job ends."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    lock, calls, begun = RunLock(run.uri), list[str](), threading.Event()

    def renew() -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            time.sleep(0.2)
        calls.append("renewed")

    monkeypatch.setattr(lock, "renew", renew)
    monkeypatch.setattr(lock, "release", lambda: calls.append("released"))
    with JobStatus(run, lock):
        assert begun.wait(20)
    time.sleep(0.3)
    assert calls[-1] == "released"


def test_a_store_that_is_out_of_reach_is_not_asked_once_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(run.uri)
    released: list[str] = []
    monkeypatch.setattr(lock, "release", lambda: released.append("once"))
    for error in (UnavailableError("silent"), StorageError("full"), None):
        try:
            with JobStatus(run, lock):
                if error is not None:
                    raise error
        except StorageError:
            pass
    assert released == ["once", "once"]


def test_a_job_that_ends_for_a_silent_store_does_not_wait_for_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does it wait for the thread that is in the midst of a sign of life."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "40")
    silent, asked = Run("s3://bucket/run", "feed", "/in", LABELS), list[str]()

    def ask(*_: object) -> None:
        asked.append("once")
        raise Passing("the store cannot be reached")

    monkeypatch.setattr(storage, "replace", lambda uri, data: patiently(uri, ask))
    monkeypatch.setattr(storage, "read_bytes", lambda uri: patiently(uri, ask))
    begun = time.monotonic()
    with JobStatus(silent, RunLock(silent.uri)) as status:
        status.write("planning")
        status.write("failed")
    assert time.monotonic() - begun < 20
    assert len(asked) > 4
