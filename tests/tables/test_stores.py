"""Runs whose input and output lie in an object store that fails every now and then."""

import hashlib
import itertools
import random
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import ConfigError, RefusedError, UnavailableError
from fcn_ray.storage import answers
from fcn_ray.tables.audit import audit
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import read_receipt
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.plan import extend_plan, pending_chunks, read_chunk
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.runs import open_run
from tests import s3 as faults
from tests.s3 import Fault, Shim, answer
from tests.tables.archives import tar
from tests.tables.making import IDENTITY, LABELS, commit_pending, finished_run, png, start_run, write_table

ROOT = "s3://bucket/job"


@pytest.fixture
def collection(s3: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """Seven images and a table of ten in the store, which is asked again without much ado."""
    return _fill(s3, tmp_path, monkeypatch)


@pytest.fixture
def anywhere(store: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """The same in each kind of store."""
    return _fill(store, tmp_path, monkeypatch)


def _fill(store: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    monkeypatch.setattr(answers, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(answers, "LONGEST_PAUSE", 0.01)
    for index in range(7):
        storage.put_if_absent(f"{store.root}/job/in/{index % 3}/{index} #?.png", png(index))
    table = write_table(tmp_path / "t.parquet", 10, image=[png(row) for row in range(10)])
    storage.put_if_absent(f"{store.root}/job/in/t.parquet", table.read_bytes())
    return store


def test_a_run_in_a_store_is_a_run(anywhere: Shim) -> None:
    root = f"{anywhere.root}/job"
    run = finished_run(root)
    report = audit(f"{root}/out", source=True)
    assert (report.findings, report.unfinished, report.statuses) == ([], [], {"ok": 17})
    assert (report.compared, report.others) == (17, 0)
    before = {entry.path: entry.version for entry in storage.list_files(root)}
    anywhere.fail("none")
    assert finished_run(root) == run
    assert anywhere.count(anywhere.put) == 1, "that of run.json, which is there"
    assert {entry.path: entry.version for entry in storage.list_files(root)} == before


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_or_twice_in_a_store_that_fails(anywhere: Shim, seed: int) -> None:
    """Every fourth request or so is refused, broken off, or done without a reply."""
    root = f"{anywhere.root}/job"
    rng = random.Random(seed)
    kinds = [answer("503 Slow Down", "SlowDown"), answer("500 Oops", "InternalError"), faults.reset, faults.lose_reply]

    def now_and_then(app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        fault = rng.choice(kinds) if rng.random() < 0.25 else None
        return fault(app, environ, start_response) if fault else app(environ, start_response)

    anywhere.fail("any", always=now_and_then)
    finished_run(root)
    anywhere.fail("none")
    report = audit(f"{root}/out")
    assert (report.findings, report.unfinished, report.statuses) == ([], [], {"ok": 17})


@pytest.mark.s3
def test_a_lost_reply_to_a_chunk_is_a_commit(collection: Shim) -> None:
    run, log = start_run(ROOT)
    collection.fail("PUT", faults.lose_reply)
    first = next(commit_pending(run, log))
    receipt = read_receipt(run, first.chunk_id, first.n_rows)
    assert receipt.n_rows == first.n_rows
    assert first not in list(pending_chunks(log))


@pytest.mark.s3
def test_an_object_that_changed_or_went_is_a_row(collection: Shim) -> None:
    run, log = start_run(ROOT, rows=10)
    storage.replace(f"{ROOT}/in/0/0 #?.png", png(99))
    storage.remove_folder(f"{ROOT}/in/1")
    rows = [row for ref in pending_chunks(log) for row in _read(run, ref)]
    found = {row["path"]: row["source_error"] for row in rows if row["source_error"]}
    assert found == {"0/0 #?.png": "changed", "1/1 #?.png": "unreadable", "1/4 #?.png": "unreadable"}


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["parquet", "image"])
def test_a_store_that_is_out_of_reach_is_no_fault_of_an_image(
    collection: Shim, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run, log = start_run(ROOT)
    ref = next(ref for ref in pending_chunks(log) if read_chunk(run.uri, ref)[0].kind == kind)
    pieces = read_chunk(run.uri, ref)
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.05")
    collection.fail("GET", always=answer("503 Slow Down", "SlowDown"))
    with pytest.raises(UnavailableError, match="the same command goes on"):
        read_rows(understand_input(run.input), pieces, Columns())


@pytest.mark.s3
def test_a_path_in_a_table_that_is_not_for_us_is_a_row(collection: Shim, tmp_path: Path) -> None:
    cells = ["s3://nobody/a.png", "s3://bucket/job/in/0/0 #?.png"]
    write_table(tmp_path / "in" / "t.parquet", 2, image=cells)
    run, log = start_run(str(tmp_path))
    (rows,) = (_read(run, ref, "s3://nobody", "s3://bucket/job") for ref in pending_chunks(log))
    assert [row["source_error"] for row in rows] == ["unreadable", None]
    assert "no such bucket" in rows[0]["source_message"]


@pytest.mark.s3
def test_a_table_is_not_quarantined_for_the_store(collection: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.05")

    def refuse_tables(app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        fault = answer("503 Slow Down", "SlowDown")
        wanted = environ["PATH_INFO"].endswith(".parquet")
        return fault(app, environ, start_response) if wanted else app(environ, start_response)

    collection.fail("GET", always=refuse_tables)
    with pytest.raises(UnavailableError):
        start_run(ROOT)


@pytest.mark.s3
def test_a_path_in_a_table_does_not_hide_that_the_credentials_have_ended(collection: Shim, tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 1, image=["s3://bucket/job/in/0/0 #?.png"])
    run, log = start_run(str(tmp_path))
    collection.fail("GET", always=answer("400 Bad Request", "ExpiredToken"))
    with pytest.raises(UnavailableError, match="renew them"):
        _read(run, next(pending_chunks(log)), "s3://bucket")


def _refuse(name: str, number: int) -> Fault:
    """The whole read of `name` with this number is refused, or any read of a table, which must not be tried again."""
    reads = itertools.count()

    def fault(app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        whole = "HTTP_RANGE" not in environ or name == "t.parquet"
        refused = environ["PATH_INFO"].endswith(name) and whole and next(reads) == number
        return (partial(answer("503 Slow Down", "SlowDown"), app) if refused else app)(environ, start_response)

    return fault


@pytest.mark.s3
@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("run.json", 0), ("run.json", 1), ("_SUCCESS", 0), ("manifests/000001.json", 1), ("plans/000001.parquet", 0)),
        *(("2/5 #?.png", 0), ("t.parquet", 0), ("t.parquet", 1)),
    ],
)
def test_a_store_that_is_out_of_reach_is_no_finding(
    collection: Shim, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    finished_run(ROOT)
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
    collection.fail("GET", always=_refuse(name, number))
    with pytest.raises(UnavailableError):
        audit(f"{ROOT}/out", source=True)


@pytest.mark.s3
@pytest.mark.parametrize("name", ["a.png", "t.parquet"])
def test_a_bucket_that_is_gone_is_told_as_such(s3: Shim, tmp_path: Path, name: str) -> None:
    bucket = boto3.resource("s3", region_name="us-east-1").Bucket("other")
    bucket.create()
    content = {"a.png": png(), "t.parquet": write_table(tmp_path / "t.parquet", 2, image=[png()] * 2).read_bytes()}
    storage.put_if_absent(f"s3://other/in/{name}", content[name])
    run = open_run(f"{ROOT}/out", "s3://other/in", IDENTITY, LABELS)
    list(commit_pending(run, extend_plan(run.uri, run.input, ChunkConfig(), Columns())))
    assert audit(f"{ROOT}/out", source=True).compared == (1 if name == "a.png" else 2)
    bucket.objects.all().delete()
    bucket.delete()
    with pytest.raises(RefusedError, match="NoSuchBucket"):
        audit(f"{ROOT}/out", source=True)
    assert audit(f"{ROOT}/out").findings == []


@pytest.mark.s3
def test_keys_with_empty_parts_are_found_again_by_the_audit(s3: Shim) -> None:
    storage.put_if_absent(f"{ROOT}/in//a/x.png", png())
    run = open_run(f"{ROOT}/out", f"{ROOT}/in//*/x.png", IDENTITY, LABELS)
    list(commit_pending(run, extend_plan(run.uri, run.input, ChunkConfig(), Columns())))
    report = audit(f"{ROOT}/out", source=True)
    assert (report.findings, report.compared, report.others) == ([], 1, 0)


@pytest.mark.s3
def test_a_store_that_is_out_of_reach_is_no_foreign_run(collection: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    start_run(ROOT)
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
    collection.fail("GET", always=_refuse("run.json", 0))
    with pytest.raises(UnavailableError):
        start_run(ROOT)


@pytest.mark.s3
def test_a_version_that_cannot_be_asked_for_is_no_fault_of_a_table(
    collection: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = start_run(ROOT)
    ref = next(ref for ref in pending_chunks(log) if read_chunk(run.uri, ref)[0].kind == "parquet")
    pieces = read_chunk(run.uri, ref)
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0")
    collection.fail("HEAD", always=_refuse("t.parquet", 2))  # after those of the footer and of the rows
    with pytest.raises(UnavailableError):
        read_rows(understand_input(run.input), pieces, Columns())


@pytest.mark.s3
def test_a_chunk_of_a_tar_takes_few_requests(collection: Shim) -> None:
    """Headers and images of a chunk lie side by side, and are read so; planning reads small members as they pass."""
    images = [bytes([row]) * 20_000 for row in range(60)]
    storage.put_if_absent(f"{ROOT}/in/z.tar", tar([(f"{row}.jpg", image) for row, image in enumerate(images)]))
    collection.fail("none")
    run, log = start_run(ROOT, rows=30)
    assert sum(path.endswith("z.tar") for _, path in collection.seen) < 10
    refs = [ref for ref in pending_chunks(log) if read_chunk(run.uri, ref)[0].kind == "tar"]
    assert len(refs) == 2
    pieces = read_chunk(run.uri, refs[1])
    collection.fail("none")
    rows = read_rows(understand_input(run.input), pieces, Columns()).to_pylist()
    assert [row["image"] for row in rows] == images[30:]
    assert [path.endswith("z.tar") for method, path in collection.seen if method == "GET"].count(True) == 1


@pytest.mark.s3
def test_the_tag_of_an_object_that_a_path_names_goes_along(collection: Shim, tmp_path: Path) -> None:
    uri = f"{ROOT}/in/0/0 #?.png"
    write_table(tmp_path / "in" / "t.parquet", 2, image=[uri, "s3://nobody/a.png"])
    run, log = start_run(str(tmp_path))
    (rows,) = (_read(run, ref, "s3://nobody", ROOT) for ref in pending_chunks(log))
    etag = hashlib.md5(png(0)).hexdigest()
    assert [row["image_version"] for row in rows] == [f"{len(png(0))}-{etag}", None]


@pytest.mark.s3
def test_a_store_that_ignores_conditions_is_refused(collection: Shim) -> None:
    def ignore(app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        return app({name: value for name, value in environ.items() if name != "HTTP_IF_NONE_MATCH"}, start_response)

    collection.fail("PUT", always=ignore)
    for _ in range(2):
        with pytest.raises(ConfigError, match="choose a store that knows conditional writes"):
            start_run(ROOT)


def _read(run: Any, ref: Any, *allowed: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_rows(
        understand_input(run.input), read_chunk(run.uri, ref), Columns(), allowed
    ).to_pylist()
    return rows
