"""Which moments are understood, and which inputs a plan since then has."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import ConfigError
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.plan import PlanLog, extend_plan, preview_plan, read_chunk, read_states
from fcn_ray.tables.since import parse_since
from tests.s3 import Shim
from tests.tables.making import write_images, write_table

NOW = datetime(2026, 9, 10, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", datetime(2026, 9, 3, 12, tzinfo=UTC)),
        ("12h", datetime(2026, 9, 10, 0, tzinfo=UTC)),
        ("1.5h", datetime(2026, 9, 10, 10, 30, tzinfo=UTC)),
        ("90m", datetime(2026, 9, 10, 10, 30, tzinfo=UTC)),
        ("30s", datetime(2026, 9, 10, 11, 59, 30, tzinfo=UTC)),
        ("2w", datetime(2026, 8, 27, 12, tzinfo=UTC)),
        ("2026-09-01T06:00+02:00", datetime(2026, 9, 1, 4, tzinfo=UTC)),
        (" 2026-09-01 06:00Z ", datetime(2026, 9, 1, 6, tzinfo=UTC)),
    ],
)
def test_moments(text: str, expected: datetime) -> None:
    found = parse_since(text, NOW)
    assert found == expected
    assert found.tzinfo is not None


def test_without_an_offset_it_is_the_time_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-5:30")  # POSIX counts westwards: 5 h 30 min ahead of UTC
    time.tzset()
    try:
        east = timezone(timedelta(hours=5, minutes=30))
        assert parse_since("2026-09-01") == datetime(2026, 9, 1, tzinfo=east)
        assert parse_since("2026-09-01T08:15") == datetime(2026, 9, 1, 2, 45, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 days", "yesterday", "2026-13-01", f"{10**20}d", "1e3d"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time: expected 2026-09-01"):
        parse_since(text, NOW)


# ---------------------------------------------------------------------------------------------------------------- plans


def _plan(root: Path, since: float | None = None) -> PlanLog:
    return extend_plan(f"{root}/run", f"{root}/in", ChunkConfig(rows=3), Columns(), since=since)


def _paths(log: PlanLog) -> list[str]:
    refs = [ref for ref, _ in read_states(log.run_uri, log.newest)]
    return [piece.path for ref in refs for piece in read_chunk(log.run_uri, ref)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Modified at 100, 200 and 300 s; a table as a whole."""
    write_images(tmp_path / "in", "a.png", "b.png", "c.png")
    write_table(tmp_path / "in" / "t.parquet", 2)
    for name, moment in (("a.png", 300), ("b.png", 100), ("c.png", 200), ("t.parquet", 100)):
        os.utime(tmp_path / "in" / name, (moment, moment))
    return tmp_path


def test_older_inputs_are_left_out_and_counted_and_a_later_plan_takes_them(root: Path) -> None:
    preview = preview_plan(f"{root}/run", f"{root}/in", ChunkConfig(rows=3), Columns(), since=200)
    assert (preview.new_rows, preview.listing.older) == (2, 2)
    log = _plan(root, since=200)
    assert (_paths(log), log.listing.older) == (["a.png", "c.png"], 2), "at that moment or after it"
    again = _plan(root, since=200.5)
    assert (again.newest, again.listing.older) == (1, 2), "what was planned before is not left out"
    log = _plan(root)
    assert (_paths(log), log.listing.older) == (["a.png", "c.png", "b.png", "t.parquet"], 0)


def test_older_tables_are_not_even_opened(root: Path) -> None:
    (root / "in" / "t.parquet").write_bytes(b"")
    os.utime(root / "in" / "t.parquet", (100, 100))
    assert _plan(root, since=200).listing.n_quarantined == 0
    assert _plan(root).listing.n_quarantined == 1


def test_inputs_whose_store_tells_no_time_are_planned(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = storage.list_files
    monkeypatch.setattr(
        storage,
        "list_files",
        lambda uri, skip=None: (storage.Entry(e.path, e.size, e.version) for e in listed(uri, skip)),
    )
    assert _plan(root, since=1e12).rows == 5


def test_one_file_is_an_input_like_others(root: Path) -> None:
    uri = f"{root}/in/b.png"
    for since, rows in ((101.0, 0), (100.0, 1)):
        log = extend_plan(f"{root}/run", uri, ChunkConfig(), Columns(), since=since)
        assert (log.rows, log.listing.older) == (rows, 1 - rows)


@pytest.mark.s3
def test_stores_tell_when_an_object_was_put(s3: Shim) -> None:
    before = time.time() - 1  # they count in seconds
    storage.put_if_absent("s3://bucket/in/a.png", b"a")
    after = time.time() + 1
    (listed,) = storage.list_files("s3://bucket/in")
    for entry in (listed, storage.stat("s3://bucket/in/a.png"), storage.fetch("s3://bucket/in/a.png", 9)[0]):
        assert entry.modified is not None
        assert before <= entry.modified <= after
