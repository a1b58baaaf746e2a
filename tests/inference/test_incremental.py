"""Jobs night after night, without Ray and networks: what they plan, when they stop, what they say."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fcn_ray.config import ModelSpec, SegmentConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import ConfigError, ForeignOutputError, IncompleteError
from fcn_ray.inference import bad_limits, execution, job
from fcn_ray.inference.job import segment
from fcn_ray.inference.report import SegmentReport
from fcn_ray.tables.audit import audit
from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.current import read_masks
from tests.tables.failing import Key, commit_rows
from tests.tables.making import LABELS, write_images, write_table

BUNDLE: dict[str, Any] = {
    "digest": "feed",
    "labels": LABELS,
    "precision": "float32",
    "spec": ModelSpec(num_classes=2),
    "weights_bytes": 0,
}


class Night:
    """Runs jobs over `root/in`; `bad` rows come out with that status."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bad: dict[Key, str] = {}
        self.given: list[Key] = []
        self.pipelines: list[Generator[Receipt, None, None]] = []
        """Kept, so that only a job that closes one ends it."""
        self.lost = 0
        """Chunks at the end of a pipeline that do not come out of it."""

    def receipts(
        self, config: Any, bundle: Any, precision: Any, run: Any, columns: Any, pending: Any
    ) -> Generator[Receipt, None, None]:
        self.pipelines.append(commit_rows(run, ref, self.bad) for ref in pending[: len(pending) - self.lost])
        return self.pipelines[-1]

    def run(self, dry_run: bool = False, **settings: Any) -> SegmentReport:
        places = {"input": f"{self.root}/in", "output": f"{self.root}/out", "model": "bundle", "chunk.rows": 2}
        return segment(load_config(SegmentConfig, flags=places | settings), dry_run=dry_run)

    @property
    def folder(self) -> Path:
        (found,) = (self.root / "out").glob("run=*")
        return found

    @property
    def status(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found

    @property
    def masks(self) -> set[str]:
        return {path.name for path in (self.folder / "masks").iterdir()}


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    night = Night(tmp_path)
    monkeypatch.setattr(job, "load_bundle", lambda model: SimpleNamespace(**BUNDLE, folder=model))
    monkeypatch.setattr(execution, "connect", lambda *_: None)
    monkeypatch.setattr(execution, "run_chunks", night.receipts)
    return night


def _photos(night: Night, *names: str) -> None:
    write_images(night.root / "in", *(f"{name}.png" for name in names))


# ----------------------------------------------------------------------------------------------------- stopping early


def test_a_job_stops_when_too_many_are_bad_and_a_higher_limit_goes_on(night: Night) -> None:
    _photos(night, *"abcdefghij")
    night.bad = {(f"{name}.png", 0): "corrupt" for name in "bcj"}
    report = night.run(max_bad_fraction=0.15)
    assert (report.too_bad, report.labelled, report.left, report.statuses) == (True, 4, 6, {"ok": 2, "corrupt": 2})
    why = "2 of 10 images are bad, max_bad_fraction is 0.15"
    assert list(report.lines())[1:3] == [
        f"stopped: 6 images are still to do, and the same command goes on: {why}",
        "2 of 4 images have no mask: 2 corrupt (columns status and error say why)",
    ]
    assert [pipeline.gi_frame for pipeline in night.pipelines] == [None], "closed, so that the actors end"
    kept = night.masks
    assert (len(kept), (night.folder / "_SUCCESS").exists()) == (2, False)
    status = night.status
    assert (status["state"], status["exit_code"], status["done"], status["bad"]) == ("stopped", 3, 4, 2)
    assert status["error"] == why
    assert audit(f"{night.root}/out").findings == []

    report = night.run(max_bad_fraction=0.3)
    assert (report.too_bad, report.labelled, report.skipped, report.stopped) == (False, 6, 4, None)
    assert report.statuses == {"ok": 7, "corrupt": 3}
    assert kept < night.masks
    assert (night.status["state"], night.status["exit_code"]) == ("complete", 0)
    assert "error" not in night.status
    assert audit(f"{night.root}/out").ok


def test_a_run_of_nothing_but_bad_images_is_not_well(night: Night) -> None:
    _photos(night, *"ab")
    night.bad = {(f"{name}.png", 0): "unreadable" for name in "ab"}
    report = night.run()
    assert (report.too_bad, report.stopped) == (True, None)
    assert (night.status["exit_code"], night.status["state"]) == (3, "complete")
    night.bad = {}
    _photos(night, "c")
    assert not night.run().too_bad


def test_what_stays_unreadable_does_not_stand_before_what_is_new(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_limits, "UNREADABLE_FIRST", 3)
    _photos(night, *"abcdefghij")
    night.bad = {(f"{name}.png", 0): "unreadable" for name in "bcdefghij"}
    assert night.run().stopped is None, "the first can be read"
    _photos(night, "k")
    report = night.run(retry_failed="passing")
    assert (report.stopped, report.labelled, report.statuses["ok"]) == (None, 10, 2)


def test_the_status_names_the_inputs_that_could_not_be_read(night: Night) -> None:
    _photos(night, "a")
    for number in range(25):
        (night.root / "in" / f"{number:02}.parquet").write_bytes(b"no table")
    report = night.run()
    assert (report.too_bad, report.n_quarantined, night.status["quarantined"]) == (True, 25, 25)
    assert list(night.status["not_read"]) == [f"{number:02}.parquet" for number in range(20)]
    assert "not a readable Parquet file" in night.status["not_read"]["00.parquet"]


def test_a_folder_without_images_is_told_as_such(night: Night) -> None:
    (night.root / "in").mkdir()
    (night.root / "photos").mkdir()
    (night.root / "in" / "2024").symlink_to(night.root / "photos")
    report = night.run()
    assert list(report.lines())[:2] == ["no images were found", "left out: 1 (linked folder)"]
    assert not report.too_bad


def test_a_job_stops_when_many_in_a_row_are_bad(night: Night) -> None:
    _photos(night, *"abcdefgh")
    night.bad = {(f"{name}.png", 0): "corrupt" for name in "bcd"}
    report = night.run(max_bad_consecutive=3)
    assert (report.too_bad, report.labelled, report.left) == (True, 4, 4)
    assert report.stopped == "3 images in a row are bad, max_bad_consecutive is 3"
    assert not night.run(max_bad_consecutive=3).too_bad, "what is done is no reason to stop again"
    assert night.status["state"] == "complete"


def test_a_limit_that_is_met_at_the_end_leaves_a_finished_run(night: Night) -> None:
    _photos(night, *"abcd")
    night.bad = {(f"{name}.png", 0): "corrupt" for name in "cd"}
    report = night.run(max_bad_consecutive=2)
    assert (report.too_bad, report.left, report.statuses) == (True, 0, {"corrupt": 2, "ok": 2})
    assert "stopped at the end: 2 images in a row are bad, max_bad_consecutive is 2" in list(report.lines())
    assert (night.status["state"], night.status["exit_code"]) == ("complete", 3)
    assert audit(f"{night.root}/out").ok


def test_a_limit_that_is_exactly_met_is_no_reason_to_stop(night: Night) -> None:
    """29 of 50, where 0.58 * 50 is less than 29."""
    _photos(night, *(f"{index:02}" for index in range(50)))
    night.bad = {(f"{index:02}.png", 0): "corrupt" for index in range(29)}
    report = night.run(max_bad_fraction=0.58, **{"chunk.rows": 50})
    assert (report.bad, report.stopped, report.too_bad) == (29, None, False)


def test_a_chunk_that_the_pipeline_lost_is_no_early_stop(night: Night) -> None:
    _photos(night, *"abcd")
    night.lost = 1
    with pytest.raises(IncompleteError, match="1 of 2 chunks are pending"):
        night.run()
    assert (night.status["state"], night.status["exit_code"]) == ("failed", 4)


# --------------------------------------------------------------------------------------------------------- trying again


def test_what_failed_is_tried_again_on_request_and_then_counts_no_more(night: Night) -> None:
    _photos(night, *"abcde")
    night.bad = {("a.png", 0): "crash", ("c.png", 0): "corrupt"}
    assert night.run(max_bad_fraction=0.2).too_bad
    before = night.masks
    night.bad = {}
    assert night.run(max_bad_fraction=0.2).labelled == 1, "what the first left"
    assert night.run().labelled == 0, "only on request"
    preview = night.run(dry_run=True, retry_failed="passing")
    assert list(preview.lines())[:2] == [
        "plan: 1 of 5 images to do, 4 done before",
        "memory: 3.0 GB for each actor, 0.8 GB for each task that decodes, 0.4 GB for each that commits",
    ]
    report = night.run(max_bad_fraction=0.2, retry_failed="passing")
    assert (report.images, report.labelled, report.skipped, report.too_bad) == (5, 1, 4, False)
    assert report.statuses == {"corrupt": 1, "ok": 4}
    assert "1 of 5 images have no mask: 1 corrupt (columns status and error say why)" in list(report.lines())
    report = night.run(retry_failed="all", max_bad_fraction=0.0)
    assert (report.labelled, report.statuses, night.status["bad"]) == (1, {"ok": 5}, 0)
    assert (report.too_bad, night.run(retry_failed="all").labelled) == (False, 0)
    assert before < night.masks
    assert read_masks(f"{night.root}/out").count_rows() == 5
    assert audit(f"{night.root}/out").ok


def test_an_image_that_changed_before_its_turn_counts_once(night: Night) -> None:
    _photos(night, *"ab")
    night.lost = 1
    with pytest.raises(IncompleteError):
        night.run()
    night.lost = 0
    (night.root / "in" / "b.png").write_bytes(b"another")
    report = night.run()
    assert (report.images, report.labelled, report.skipped) == (2, 3, 0)


def test_an_image_that_changed_counts_once(night: Night) -> None:
    _photos(night, *"abc")
    write_table(night.root / "in" / "t.parquet", 3)
    night.bad = {("b.png", 0): "corrupt", ("t.parquet", 0): "null"}
    night.run()
    night.bad = {}
    (night.root / "in" / "b.png").write_bytes(b"another")
    write_table(night.root / "in" / "t.parquet", 5)
    report = night.run(max_bad_fraction=0.0)
    assert (report.images, report.labelled, report.skipped) == (8, 6, 2)
    assert (report.statuses, report.too_bad) == ({"ok": 8}, False)
    assert read_masks(f"{night.root}/out").count_rows() == 8


def test_a_preview_counts_an_image_that_changed_or_failed_as_the_job_does(night: Night) -> None:
    """By hand: of three images and a table of four, b changed and had failed; c failed; the table has another row."""
    _photos(night, *"abc")
    write_table(night.root / "in" / "t.parquet", 4)
    night.bad = {("b.png", 0): "crash", ("c.png", 0): "crash", ("t.parquet", 3): "crash"}
    night.run()
    night.bad = {}
    (night.root / "in" / "b.png").write_bytes(b"another")
    preview, before = night.run(dry_run=True), night.masks
    assert (preview.images, preview.skipped) == (7, 6)
    assert next(iter(preview.lines())) == "plan: 1 of 7 images to do, 6 done before"
    write_table(night.root / "in" / "t.parquet", 5)
    preview = night.run(dry_run=True, retry_failed="passing")
    assert (preview.images, preview.skipped) == (8, 1), "b, c and five rows"
    assert night.masks == before
    report = night.run(retry_failed="passing")
    assert (report.images, report.labelled, report.skipped) == (8, 7, 1)


def test_a_preview_counts_an_image_that_changed_before_its_turn_once(night: Night) -> None:
    _photos(night, *"ab")
    night.lost = 1
    with pytest.raises(IncompleteError):
        night.run()
    (night.root / "in" / "b.png").write_bytes(b"another")
    preview = night.run(dry_run=True)
    assert (preview.images, preview.skipped) == (2, 0)


# ---------------------------------------------------------------------------------------------------------------- since


def test_inputs_since_a_time_and_later_the_rest(night: Night) -> None:
    _photos(night, *"abcd")
    for name, day in (("a", 1), ("b", 3), ("c", 2)):
        os.utime(night.root / "in" / f"{name}.png", (day * 86400, day * 86400))
    settings = {"since": "1970-01-03T00:00+00:00"}
    line = "1 new inputs left out, older than 1970-01-03 00:00:00+00:00: the same job without --since takes them"
    preview = night.run(dry_run=True, **settings)
    assert (preview.images, preview.older, line in list(preview.lines())) == (3, 1, True)
    report = night.run(**settings)
    assert (report.images, report.labelled, report.older, line in list(report.lines())) == (3, 3, 1, True)
    assert audit(f"{night.root}/out").ok
    rest = night.run()
    assert (rest.run, rest.labelled, rest.skipped, rest.older) == (report.run, 1, 3, 0)


def test_a_time_that_is_none_is_refused_before_anything_is_written(night: Night) -> None:
    _photos(night, "a")
    with pytest.raises(ConfigError, match="'tomorrow' is no time"):
        night.run(since="tomorrow")
    assert not (night.root / "out").exists()


def test_a_date_in_a_file_of_settings_is_a_time(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: a\noutput: b\nmodel: c\nsince: 2026-09-01\n")
    assert load_config(SegmentConfig, str(tmp_path / "job.yaml")).since == "2026-09-01"
    assert load_config(SegmentConfig, str(tmp_path / "job.yaml"), ["since=7d"]).since == "7d"


# ------------------------------------------------------------------------------------------------------------- the lock


def _other_job(night: Night, **changes: Any) -> Path:
    """The lock of a job on another machine."""
    night.run()
    lock = night.folder / "lock.json"
    found = json.loads(lock.read_text())
    found["owner"] |= {"id": "other", "host": "elsewhere", "user": "nightly"}
    lock.write_text(json.dumps(found | {"expires": night.status["updated"] + 200} | changes))
    return lock


def test_beside_another_job_a_job_warns_and_goes_on(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    _photos(night, "a")
    lock = _other_job(night)
    before = lock.read_text()
    _photos(night, "b")
    with caplog.at_level(logging.WARNING):
        assert night.run().labelled == 1
    assert "is worked on by nightly on elsewhere (process" in caplog.text
    assert "each chunk is stored once" in caplog.text
    assert lock.read_text() == before, "it stays the other's"


def test_beside_another_job_a_job_ends_when_it_is_told_to(night: Night) -> None:
    _photos(night, "a")
    _other_job(night)
    _photos(night, "b")
    before = (night.folder / "status.json").read_bytes()
    with pytest.raises(ForeignOutputError, match=r"worked on by nightly on elsewhere.*; wait for its end") as caught:
        night.run(if_running="fail")
    assert caught.value.exit_code == 5
    assert (night.folder / "status.json").read_bytes() == before, "which is the other job's"
    assert night.run(dry_run=True, if_running="fail").images == 2, "to look is no work"


def test_a_job_leaves_no_lock_behind(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    _photos(night, *"abcd")
    night.lost = 1
    with pytest.raises(IncompleteError):
        night.run(if_running="fail")
    night.lost = 0
    assert night.run(if_running="fail").labelled == 2
    assert night.run(if_running="fail").labelled == 0
    assert caplog.text == ""
