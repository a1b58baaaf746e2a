"""When a job stops, worked out against the plain list of all rows."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.inference.bad_limits import BadLimits, is_above
from fcn_ray.inference.labelling import Labelling
from fcn_ray.inference.stages import read_receipts
from fcn_ray.inference.status import JobStatus
from fcn_ray.tables.commit import Receipt, _bad_runs, read_receipt
from fcn_ray.tables.lock import RunLock
from fcn_ray.tables.plan import pending_chunks
from tests.tables.failing import commit_rows
from tests.tables.making import start_run, write_images


def _receipt(rows: str, name: str = "chunk") -> Receipt:
    """A chunk of rows, each ok (.) or bad (x)."""
    statuses = {"ok": rows.count("."), "corrupt": rows.count("x")}
    runs = _bad_runs(["corrupt" if row == "x" else "ok" for row in rows])
    return Receipt(name, len(rows), 1, "", {status: n for status, n in statuses.items() if n}, True, runs)


def _chunk(**statuses: int) -> Receipt:
    return Receipt("chunk", sum(statuses.values()), 1, "", statuses, True)


def test_a_job_that_can_read_nothing_ends_after_a_thousand_images() -> None:
    """The policy of the workers' role, or links out of the input: the other millions would be no better."""
    limits = BadLimits(1.0, 0, 10**7, {})
    stops = [limits.add(_chunk(unreadable=64)) for _ in range(16)]
    assert stops[:-1] == [None] * 15
    assert "the first 1024 images are all unreadable" in str(stops[-1])


def test_a_run_that_has_masks_goes_on_whatever_is_tried_again() -> None:
    """Dead links of a night before come first, and must not stand before the new images."""
    limits = BadLimits(1.0, 0, 10**7, {}, fresh=False)
    assert [limits.add(_chunk(unreadable=64)) for _ in range(40)] == [None] * 40


@pytest.mark.parametrize("first", [{"ok": 1, "unreadable": 63}, {"corrupt": 1}])
def test_one_that_could_be_read_is_reason_to_go_on(first: dict[str, int]) -> None:
    limits = BadLimits(1.0, 0, 10**7, {})
    assert limits.add(_chunk(**first)) is None
    assert [limits.add(_chunk(unreadable=64)) for _ in range(40)] == [None] * 40


@pytest.mark.parametrize(
    ("rows", "runs"),
    [("", (0, 0, 0)), ("...", (0, 0, 0)), ("xxx", (3, 3, 3)), ("xx.", (2, 2, 0)), ("x.xxx..xx", (1, 3, 2))],
)
def test_bad_rows_in_a_row(rows: str, runs: tuple[int, int, int]) -> None:
    assert tuple(_receipt(rows).bad_runs) == runs


def test_a_receipt_tells_them_whoever_wrote_the_chunk(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png", "c.png")
    run, log = start_run(tmp_path)
    (ref,) = pending_chunks(log)
    written = commit_rows(run, ref, {("b.png", 0): "crash", ("c.png", 0): "crash"})
    there = read_receipt(run, ref.chunk_id, ref.n_rows)
    assert written.written > there.written
    assert tuple(written.bad_runs) == tuple(there.bad_runs) == (0, 2, 2)


@given(
    chunks=st.lists(st.text("x.", min_size=1, max_size=6), min_size=1, max_size=8),
    limit=st.integers(1, 12),
)
def test_rows_in_a_row_are_counted_across_chunks(chunks: list[str], limit: int) -> None:
    limits = BadLimits(1.0, limit, 1000, {})
    stopped = next((index for index, rows in enumerate(chunks) if limits.add(_receipt(rows))), None)
    runs = [
        max([len(list(run)) for bad, run in groupby("".join(chunks[: index + 1])) if bad == "x"], default=0)
        for index in range(len(chunks))
    ]
    assert stopped == next((index for index, longest in enumerate(runs) if longest >= limit), None)


def test_the_reason_says_what_was_found_and_what_the_limit_is() -> None:
    limits = BadLimits(1.0, 3, 10, {})
    assert limits.add(_receipt("..xx")) is None
    assert limits.add(_receipt("xx.x")) == "4 images in a row are bad, max_bad_consecutive is 3"
    limits = BadLimits(0.2, 0, 10, {})
    assert limits.add(_receipt("xx.")) is None, "two of ten are not more than a fifth"
    assert limits.add(_receipt("...x")) == "3 of 10 images are bad, max_bad_fraction is 0.2"


def test_a_job_may_go_on_while_the_limit_can_still_be_kept() -> None:
    """One of four so far, but a tenth of all; and not one more than that."""
    limits = BadLimits(0.1, 0, 40, {})
    assert [bool(limits.add(_receipt("x..."))) for _ in range(6)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("images", [100, 1000])
def test_a_limit_that_is_exactly_met_is_kept(images: int) -> None:
    """Each percentage, of which floats hold few: 0.29 * 100 is 28.999999999999996."""
    for percent in range(1, 100):
        bad = percent * images // 100
        assert not is_above(float(f"0.{percent:02}"), bad, images)
        assert is_above(float(f"0.{percent:02}"), bad + 1, images)
    limits = BadLimits(0.29, 0, 100, {})
    assert [limits.add(_receipt("x")) for _ in range(29)] == [None] * 29
    assert limits.add(_receipt("x")) is not None


def test_without_images_no_limit_is_met() -> None:
    assert not is_above(0.0, 0, 0)


def test_no_limit_is_never_met() -> None:
    limits = BadLimits(1.0, 0, 6, {})
    assert [limits.add(_receipt("xxx")) for _ in range(2)] == [None, None]


def test_rows_that_newer_plans_have_again_do_not_count() -> None:
    """Two of the three are superseded, so that one bad image at least will count."""
    assert BadLimits(0.0, 0, 9, {"chunk": 2}).add(_receipt("xx.")) is None
    assert BadLimits(0.0, 0, 9, {"chunk": 2}).add(_receipt("xxx")) is not None
    assert BadLimits(0.0, 0, 9, {"other": 2}).add(_receipt("xx.")) is not None


def test_receipts_come_over_from_workers(tmp_path: Path) -> None:
    import json
    from dataclasses import asdict

    import pyarrow as pa

    receipt = _receipt("xx..x")
    (found,) = read_receipts(pa.table({"receipt": [json.dumps(asdict(receipt))]}))
    assert BadLimits(1.0, 2, 9, {}).add(found)
    assert not BadLimits(1.0, 3, 9, {}).add(found)


def test_what_another_job_stored_is_no_bad_image_and_no_speed_of_this_one(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    run, _ = start_run(tmp_path)
    theirs = [replace(_receipt("xxxx"), written=False)] * 3
    labelling = Labelling(time.monotonic())
    labelling.follow((r for r in theirs), 12, BadLimits(1.0, 3, 12, {}), JobStatus(run, RunLock(run.uri)))
    assert (labelling.done, labelling.found, labelling.stored, labelling.stopped) == (12, 12, 0, None)
    assert not labelling.images_per_second
    labelling.follow((r for r in [_receipt("xxx")]), 3, BadLimits(1.0, 3, 12, {}), JobStatus(run, RunLock(run.uri)))
    assert (labelling.found, labelling.stored) == (12, 3)
    assert labelling.stopped == "3 images in a row are bad, max_bad_consecutive is 3"
