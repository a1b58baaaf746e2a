"""A job dies at every failpoint in turn: what it leaves keeps every promise, and the next job goes on from there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest

from fcn_ray.errors import ConfigError
from fcn_ray.tables.audit import audit
from tests.failpoints import failpoint_names
from tests.tables.dying import IMAGES, Jobs, rows_of

CODES = {"kill": -9, "raise": 1, "hang": -9}


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with Jobs() as started:
        yield started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One place for all jobs, so that the same steps leave the same bytes."""
    return tmp_path_factory.mktemp("failpoints") / "job"


@pytest.fixture(scope="module")
def tried() -> set[bytes]:
    """States of storage from which a job was seen to go on: it knows nothing but what is stored."""
    return set()


@pytest.mark.parametrize("name", failpoint_names())
def test_a_job_that_dies_there_goes_on(jobs: Jobs, place: Path, tried: set[bytes], name: str) -> None:
    """Killed, failed and hung at the first and second time, and killed at each later one that a job comes to."""
    for number in count(1):
        for action in CODES if number <= 2 else ["kill"]:
            failpoint = f"{name}:{number}:{action}"
            shutil.rmtree(place, ignore_errors=True)
            (ended,) = jobs.start(place, failpoint)
            if number > 2 and ended.failpoint is None:
                assert ended.code == 0, ended.errors
                return
            assert (ended.failpoint, ended.code) == (failpoint, CODES[action]), ended.errors
            leftovers = _check_promises(place)
            assert leftovers <= (action != "raise"), "a job that can still act takes its temporary file away"
            _check_next_jobs(jobs, place, tried)


@pytest.mark.parametrize("name", failpoint_names())
def test_a_job_is_not_harmed_by_one_that_dies_beside_it(jobs: Jobs, place: Path, tried: set[bytes], name: str) -> None:
    """They start together, with other chunk sizes; the one that hangs is there until the other is at its end."""
    for failpoint in (f"{name}:1:hang", f"{name}:2:kill"):
        shutil.rmtree(place, ignore_errors=True)
        dying, other = jobs.start(place, failpoint, None)
        assert dying.failpoint in {failpoint, None}, "it does not come there when the other took the work"
        assert dying.code == (-9 if dying.failpoint else 0), dying.errors
        assert other.code == 0, other.errors
        _check_promises(place)
        _check_next_jobs(jobs, place, tried)


def _check_promises(place: Path) -> int:
    """Nothing that is stored breaks a promise; how many temporary files are left."""
    try:
        report = audit(f"{place}/out")
    except ConfigError:  # it died before the run was there
        return len(list(place.glob("out/*/.tmp-*")))
    assert report.findings == []
    return report.leftovers


def _check_next_jobs(jobs: Jobs, place: Path, tried: set[bytes]) -> None:
    """The next job comes to the end, and the one after it has nothing to put."""
    state = _state(place)
    if state in tried:
        return
    puts = _puts(jobs, place, times=2)
    report = audit(f"{place}/out")
    assert (report.findings, report.unfinished) == ([], [])
    rows = rows_of(place)
    assert (len(rows), len(set(rows))) == (IMAGES, IMAGES)
    assert puts[-2:] == [("run.json", False)] * 2, "which is how a job asks whether the run is there"
    tried.add(state)


def _puts(jobs: Jobs, place: Path, times: int = 1) -> list[tuple[str, bool]]:
    """What a job puts that comes to its end."""
    (ended,) = jobs.start(place, None, times=times)
    assert ended.code == 0, ended.errors
    return ended.puts


def _state(place: Path) -> bytes:
    """Digest of all names and contents that jobs look at: not temporary files, not status.json."""
    state = sha256()
    for path in sorted(place.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "status.json":
            state.update(f"{path} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return state.digest()


def test_a_job_that_nothing_happens_to(jobs: Jobs, place: Path) -> None:
    """What the others are compared with: how often it puts, and that the inputs of both nights are there."""
    shutil.rmtree(place, ignore_errors=True)
    puts = _puts(jobs, place)
    kinds = [name.partition("/")[0] for name, written in puts if written]
    assert kinds == ["run.json", "plans", "masks", "masks", "manifests", "plans", "masks", "manifests"]
    assert len(rows_of(place)) == IMAGES
