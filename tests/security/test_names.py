"""S7, S18: a name is a value in a column. No part of it becomes a path, an order, a tag, or a line of a log."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig, ModelSpec, Preprocessing
from fcn_ray.errors import DataError, printable
from fcn_ray.inference.report import SegmentReport
from fcn_ray.labels import LabelSet
from fcn_ray.models.card import write_card
from fcn_ray.reports.console import log_plainly, plain_lines, print_lines
from fcn_ray.reports.page import Picture, Table, render_page
from fcn_ray.storage import s3 as s3_store
from fcn_ray.tables.audit import audit
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.plan import extend_plan
from fcn_ray.tables.sources import MAX_NAMED, Listing, Quarantined
from tests.images.labelling import Labelled, label
from tests.s3 import Shim
from tests.security.bundles import write_bundle
from tests.security.names import BYTES, KEYS, NAMES
from tests.tables.making import png, write_images

_MASKS = re.compile(r"run=[0-9a-f]{16}/masks/[0-9a-f]{32}\.parquet")


def _tree(root: Path) -> set[bytes]:
    return {os.path.join(folder, name) for folder, _, names in os.walk(os.fsencode(root)) for name in names}


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A folder with an image of every name."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in [*map(os.fsencode, NAMES), *BYTES]:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(png())
    return folder


def test_every_name_has_its_row_and_no_place_of_its_own(named: Path, tmp_path: Path) -> None:
    assert len(set(NAMES)) >= 60
    before = _tree(tmp_path)
    found = label(named, tmp_path / "out")
    _check_rows(found, [name for name in NAMES if not name.startswith(".")])
    hidden = [name for name in NAMES if name.startswith(".")]
    assert found.listing.skipped == {"(hidden)": len(hidden)}
    reasons = {left.reason for left in found.listing.quarantined}
    assert (found.listing.n_quarantined, reasons) == (
        len(BYTES),
        {"its name is not UTF-8, and tables cannot hold it: rename it"},
    )
    assert all(left.path.isascii() for left in found.listing.quarantined)
    written = sorted(path[len(str(tmp_path)) + 1 :].decode() for path in _tree(tmp_path) - before)
    assert before <= _tree(tmp_path)
    assert all(path.startswith("out/run=") for path in written)
    assert [path for path in written if "/masks/" in path and not _MASKS.fullmatch(path[4:])] == []
    assert {path.partition("/")[2].partition("/")[2] for path in written if "/masks/" not in path} == {
        "_SUCCESS",
        "manifests/000001.json",
        "plans/000001.parquet",
        "run.json",
    }
    report = audit(str(tmp_path / "out"))
    assert (report.findings, report.statuses) == ([], {"ok": len(NAMES) - len(hidden)})


def _check_rows(found: Labelled, names: list[str]) -> None:
    assert sorted(row["path"] for row in found.rows) == sorted(names)
    assert {row["status"] for row in found.rows} == {"ok"}
    assert {row["image_id"] for row in found.rows} == set(names)
    for row in found.rows:
        assert "/" not in row["mask"]["path"]
        assert row["mask"]["path"].endswith(".png")


@pytest.mark.s3
def test_every_key_has_its_row_and_no_place_of_its_own(s3: Shim, tmp_path: Path) -> None:
    keys = [name for name in NAMES + KEYS if "\n" not in name]  # moto has no route for those
    for key in keys:
        storage.put_if_absent(f"s3://bucket/in/{key}", png())
    before = _tree(tmp_path)
    s3.fail("none")
    found = label("s3://bucket/in", tmp_path / "out")
    listed = [key for key in keys if not any(part.startswith((".", "_")) for part in key.split("/")[:-1])]
    listed = [key for key in listed if not key.split("/")[-1].startswith(".")]
    _check_rows(found, listed)
    assert sum(found.listing.skipped.values()) == len(keys) - len(listed)
    assert {method for method, _ in s3.seen} <= {"GET", "HEAD"}
    assert all(path.startswith("/bucket") for _, path in s3.seen)
    assert all(path.startswith(os.fsencode(tmp_path / "out")) for path in _tree(tmp_path) - before)
    for key in keys:  # one by one: control characters have no place in the XML that deletes many
        s3_store.delete(f"s3://bucket/in/{key}")


# -------------------------------------------------------------------------------------------------- terminals and logs

_REPORT = SegmentReport(
    run="out/run=0",
    images=1,
    labelled=1,
    skipped=0,
    statuses={"ok": 1},
    quarantined=tuple(Quarantined(name, f"reason {name}", False) for name in NAMES),
    skipped_files=dict.fromkeys(NAMES, 1),
)


def test_a_report_has_one_plain_line_for_each_thing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(_REPORT.lines())
    print_lines(lines)
    printed = capsys.readouterr().out
    assert printed.count("\n") == len(lines) == len(NAMES) + 4
    assert all(line.isprintable() for line in printed.splitlines())


def test_names_that_are_no_text_can_be_printed(capfd: pytest.CaptureFixture[str]) -> None:
    print_lines([os.fsdecode(name) for name in BYTES])
    assert capfd.readouterr().out.splitlines() == [
        r"latin-\udce9.png",
        r"\udcff\udcfe.png",
        r"half-\udced\udca0\udc80.png",
    ]


def test_the_command_line_shows_names_as_they_are_spelled(tmp_path: Path) -> None:
    name = b"no\x1b[31m\nerror: forged\xff.png"
    command = [sys.executable, "-m", "fcn_ray", "segment", name, tmp_path / "out", "--model", tmp_path / "in\x07"]
    run = subprocess.run(command, capture_output=True, check=False, timeout=250)
    assert run.returncode == 8
    assert run.stderr.decode().count("\n") == 1
    assert r"in\x07/model.json does not exist" in run.stderr.decode()
    command[command.index("--model") + 1] = write_bundle(tmp_path / "b", b"weights")
    run = subprocess.run(command, capture_output=True, check=False, timeout=250)
    assert run.returncode == 2
    first, *others = run.stderr.decode().splitlines()
    assert r"no\x1b[31m" in first
    assert {other[:27] for other in others} == {r"    error: forged\udcff.png"}, "a forged line is not at the margin"


@pytest.fixture
def plain_logs() -> Iterator[None]:
    logger = logging.getLogger("fcn_ray")
    before = (list(logger.handlers), logger.propagate, sys.excepthook)
    log_plainly()
    yield
    logger.handlers[:], logger.propagate, sys.excepthook = before


@pytest.mark.usefixtures("plain_logs")
def test_warnings_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        logging.getLogger("fcn_ray.somewhere").warning("%s cannot be read", name)
    printed = capsys.readouterr().err
    assert printed.count("\n") == len(NAMES)
    assert all(line.isprintable() for line in printed.splitlines())


@pytest.mark.usefixtures("plain_logs")
def test_a_crash_is_told_in_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    try:
        raise RuntimeError("\x1b[2J and canary-secret")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
        logging.getLogger("fcn_ray").exception("\x07 happened")
    printed = capsys.readouterr().err
    assert printed.count("\n" r"RuntimeError: \x1b[2J and ***") == 2
    assert r"\x07 happened" in printed
    assert "canary-secret" not in printed
    assert all(line.isprintable() for line in printed.splitlines())


def test_later_lines_of_a_message_stay_lines() -> None:
    assert plain_lines("one\ntwo\x1b\rthree") == ["one", r"two\x1b", "three"]
    assert printable("one\ntwo") == r"one\ntwo"


# --------------------------------------------------------------------------------------------------------------- pages


class _Tags(HTMLParser):
    """The tags of a page with their attributes' names, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attributes)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _page(names: list[str]) -> _Tags:
    pixels = np.zeros((2, 2), np.uint8)
    labels = LabelSet.from_names(names[:2])
    pictures = [Picture(name, np.zeros((2, 2, 3), np.uint8), pixels, pixels + 1) for name in names[:3]]
    table = Table(names[0], names[:2], [(name, name) for name in names])
    return _Tags(render_page(names[0], [(name, name) for name in names], [table], pictures, labels))


def test_a_page_has_the_same_tags_whatever_the_names() -> None:
    harmless = _page([f"name {index}" for index in range(len(NAMES))])
    for start in range(0, len(NAMES), 3):  # each has its turn as a title, a class and a caption
        names = [*NAMES[start:], *NAMES[:start]]
        page = _page(names)
        assert page.tags == harmless.tags
        assert all(text.strip("\n ").isprintable() or "color-scheme" in text for text in page.text)
        assert [name for name in names if printable(name) not in page.text and printable(name).strip() == name] == []


def _card(names: list[str]) -> str:
    about = {"data": {"uri": names[0], "digest": names[1]}, "command": names[2], "trained_with": {"a": names[3]}}
    labels = LabelSet.from_names(names)
    spec = ModelSpec(num_classes=len(names))
    return write_card(spec, labels, Preprocessing(), {"class_iou": [0.5] * len(names), **about}, {"ray": "2"}, "0" * 64)


def test_a_model_card_has_the_same_lines_and_no_tags() -> None:
    harmless = _card([f"name {index}" for index in range(len(NAMES))]).splitlines()
    for start in range(0, len(NAMES), 9):
        lines = _card([*NAMES[start:], *NAMES[:start]]).splitlines()
        assert len(lines) == len(harmless)
        assert all(line.isprintable() for line in lines)
        assert "<" not in "".join(lines)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("fcn_ray.labels", b"["),
        ("fcn_ray.labels", b"[" * 100_000),
        ("fcn_ray.labels", b"\xff\xfe"),
        ("fcn_ray.labels", b"null"),
        ("fcn_ray.labels", b"{}"),
        ("fcn_ray.labels", b'{"names": [["a"], ["b"]], "palette": [[0, 0, 0], [1, 1, 1]], "ignore_id": 255}'),
        ("fcn_ray.labels", b'{"names": ["a", "b"], "palette": [[0, 0], [1, 1, 1]], "ignore_id": 255}'),
        ("fcn_ray.labels", b'{"names": ["a", "b"], "palette": [[0, 0, 1e400], [1, 1, 1]], "ignore_id": 255}'),
        ("fcn_ray.labels", b'{"names": 5, "palette": [], "ignore_id": 255}'),
        ("classes", b"{"),
        ("classes", b"7"),
    ],
)
def test_class_names_that_are_none_are_refused_with_a_message(key: str, text: bytes) -> None:
    with pytest.raises(DataError) as caught:
        LabelSet.from_metadata({key.encode(): text})
    assert len(str(caught.value)) < 500


# --------------------------------------------------------------------------------------------------------------- limits


def test_quarantined_tables_are_counted_and_named_within_bounds(tmp_path: Path) -> None:
    listing = Listing()
    for index in range(MAX_NAMED + 2):
        listing.quarantine(f"{index}.parquet", DataError("\x1b" + "very long " * 100))
    assert (listing.n_quarantined, len(listing.quarantined)) == (MAX_NAMED + 2, MAX_NAMED)
    assert {len(table.reason) for table in listing.quarantined} == {500}
    assert all(table.reason.isprintable() for table in listing.quarantined)


def test_the_reason_of_a_table_with_endless_columns_is_short(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    columns = {f"\n{index:0100}": [index] for index in range(2000)}
    pq.write_table(pa.table(columns), tmp_path / "in" / "wide.parquet")
    write_images(tmp_path / "in", "a.png")
    log = extend_plan(str(tmp_path / "run"), str(tmp_path / "in"), ChunkConfig(), Columns())
    (table,) = log.listing.quarantined
    assert len(table.reason) == 500
    assert table.reason.isprintable()
