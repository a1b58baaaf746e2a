"""Folders of everything at once: tables of every form, tars, image files, and files that are broken in every way."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_ray.config import ChunkConfig
from fcn_ray.tables.audit import audit
from fcn_ray.tables.audit_plans import check_coverage, check_plan
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import PlanLog, extend_plan, pending_chunks, read_chunk
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.runs import open_run
from tests.tables.archives import tar
from tests.tables.making import IDENTITY, LABELS, commit_pending

ROWS = 7
IMAGES = [b"picture %d" % row * 50 for row in range(ROWS)]
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Maker = Callable[[Path], None]


def _table(image: pa.Array, **columns: pa.Array) -> Maker:
    return lambda path: pq.write_table(pa.table({"image": image} | columns), path, row_group_size=3)


def _by_path(path: Path) -> None:
    """Its images lie in a folder that is no input."""
    (path.parent / "_far").mkdir(exist_ok=True)
    for row, image in enumerate(IMAGES):
        (path.parent / "_far" / f"{row}.bin").write_bytes(image)
    pq.write_table(pa.table({"image": [f"_far/{row}.bin" for row in range(ROWS)]}), path)


def _tar(path: Path) -> None:
    path.write_bytes(
        tar([member for row in range(ROWS) for member in ((f"{row}.jpg", IMAGES[row]), (f"{row}.x", b"x"))])
    )


def _bytes(change: Callable[[bytes], bytes], maker: Maker | None = None) -> Maker:
    """A file, a table if nothing else is said, that was whole."""

    def make(path: Path) -> None:
        (maker or _table(pa.array(IMAGES)))(path)
        path.write_bytes(change(path.read_bytes()))

    return make


GOOD: dict[str, Maker] = {
    "binary.parquet": _table(pa.array(IMAGES, pa.binary()), name=pa.array(range(ROWS))),
    "dictionary.parquet": _table(pa.array(IMAGES, pa.binary()).dictionary_encode()),
    "large.parquet": _table(pa.array(IMAGES, pa.large_binary()), name=pa.array(["x"] * ROWS)),
    "struct.parquet": _table(pa.array([{"bytes": image, "path": "a"} for image in IMAGES], HF)),
    "named.parquet": lambda path: pq.write_table(pa.table({"photo": IMAGES, "mask": IMAGES}), path),
    "path.parquet": _by_path,
    "shard.tar": _tar,
}
"""Each has the same images."""

BAD: dict[str, tuple[Maker, str]] = {
    "zero.parquet": (lambda path: path.touch(), "not a readable Parquet file of 0 bytes"),
    "footless.parquet": (_bytes(lambda data: data[:-40]), "not a readable Parquet file"),
    "torn.parquet": (_bytes(lambda data: data[:-108] + bytes(100) + data[-8:]), "not a readable Parquet file"),
    "page.parquet": (lambda path: path.write_bytes(b"<html>" * 99), "not a readable Parquet file"),
    "texts.parquet": (lambda path: pq.write_table(pa.table({"a": ["x"]}), path), "no column holds images"),
    "columnless.parquet": (lambda path: pq.write_table(pa.table({}), path), "found no columns"),
    "two.parquet": (lambda path: pq.write_table(pa.table({"a": IMAGES, "b": IMAGES}), path), "could all hold"),
    "zero.tar": (lambda path: path.touch(), "not a readable tar of 0 bytes"),
    "cut.tar": (_bytes(lambda data: data[:2000], _tar), "not a readable tar of 2000 bytes"),
    "damaged.tar": (_bytes(lambda data: data[:2048] + b"\1" + data[2049:], _tar), "not a readable tar"),
    "texts.tar": (lambda path: path.write_bytes(tar([("a.txt", b"x")])), "no member is an image"),
}
FILES = {"photo.png": b"a photo", "nothing.jpg": b""}

_NAMES = sorted([*GOOD, *BAD, *FILES])


def _fill(folder: Path, names: list[str]) -> dict[tuple[str, int], bytes]:
    """Files of these names, each in a folder of its own number; (path, row) -> image of those that are good."""
    images: dict[tuple[str, int], bytes] = {}
    for number, name in enumerate(names):
        path = folder / str(number % 3) / f"{number}-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        key = path.relative_to(folder).as_posix()
        if name in FILES:
            path.write_bytes(FILES[name])
            images[key, 0] = FILES[name]
        elif name in GOOD:
            GOOD[name](path)
            images |= {(key, row): image for row, image in enumerate(IMAGES)}
        else:
            BAD[name][0](path)
    return images


def _read(log: PlanLog, root: Path) -> dict[tuple[str, int], bytes | None]:
    found: dict[tuple[str, int], bytes | None] = {}
    for ref in pending_chunks(log):
        rows = read_rows(understand_input(str(root)), read_chunk(log.run_uri, ref), Columns()).to_pylist()
        assert len(rows) == ref.n_rows
        found |= {(row["path"], row["row"]): row["image"] if row["source_error"] is None else None for row in rows}
    assert len(found) == log.rows, "a row is there twice"
    return found


@given(
    names=st.lists(st.sampled_from(_NAMES), min_size=1, max_size=9),
    rows=st.integers(1, 9),
    size=st.sampled_from([1, 1000, 10_000]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_good_row_is_there_and_every_bad_file_is_named(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], rows: int, size: int
) -> None:
    root = tmp_path_factory.mktemp("mixture")
    images = _fill(root / "in", [*names, "photo.png"])
    log = extend_plan(f"{root}/run", f"{root}/in", ChunkConfig(rows=rows, bytes=size), Columns())
    assert _read(log, root / "in") == images
    named = {found.path.partition("-")[2]: found.reason for found in log.listing.quarantined}
    assert set(named) == {name for name in names if name in BAD}
    assert all(BAD[name][1] in reason for name, reason in named.items())
    assert log.listing.n_quarantined == sum(name in BAD for name in names)
    plans = range(1, log.newest + 1)
    assert [*check_plan(log.run_uri, 1), *check_coverage(log.run_uri, plans)] == []


def test_a_run_over_everything_is_whole(tmp_path: Path) -> None:
    images = _fill(tmp_path / "in", _NAMES)
    (tmp_path / "in" / "old.tar.gz").write_bytes(gzip.compress(b"x"))
    run = open_run(f"{tmp_path}/out", f"{tmp_path}/in", IDENTITY, LABELS)
    log = extend_plan(run.uri, run.input, ChunkConfig(rows=3), Columns())
    list(commit_pending(run, log))
    finish(run, log)
    report = audit(f"{tmp_path}/out")
    assert (report.findings, report.unfinished) == ([], [])
    assert report.statuses == {"ok": len(images)}
    assert (log.listing.n_quarantined, log.listing.skipped[".tar.gz"]) == (len(BAD), 1)


@given(name=st.sampled_from(sorted(GOOD)), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_file_that_is_damaged_anywhere_costs_no_other_a_row(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """It is cut off, or a byte is another one: it is quarantined, or its rows are there, whatever they hold."""
    root = tmp_path_factory.mktemp("damage")
    images = _fill(root / "in", ["photo.png", name, "binary.parquet"])
    (path,) = root.glob(f"in/*/1-{name}")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    path.write_bytes(content)
    os.utime(path, ns=(0, 1))
    log = extend_plan(f"{root}/run", f"{root}/in", ChunkConfig(rows=4), Columns())
    found = _read(log, root / "in")
    damaged = f"1/1-{name}"
    others = {key: image for key, image in images.items() if key[0] != damaged}
    assert {key: image for key, image in found.items() if key[0] != damaged} == others
    rows = len(found) - len(others)
    assert log.listing.n_quarantined == (rows == 0)
