import json
from pathlib import Path

import pytest

from fcn_ray import storage
from fcn_ray.errors import AuditError, IncompleteError
from fcn_ray.tables import manifest as module
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import pending_chunks
from fcn_ray.tables.runs import Run
from tests.tables.making import commit_pending, finished_run, result_rows, start_run, write_images, write_table


def _success(run: Run) -> dict:
    success: dict = json.loads(Path(run.uri, "_SUCCESS").read_text())
    return success


def test_a_manifest_lists_every_object(tmp_path: Path) -> None:
    write_images(tmp_path / "in", *(f"{name}.png" for name in "abcde"))
    write_table(tmp_path / "in" / "t.parquet", 4)
    run, log = start_run(tmp_path)
    list(commit_pending(run, log))
    done = finish(run, log)
    assert (done.plan, done.chunks, done.rows, done.statuses, done.bad_rows) == (1, 4, 9, {"ok": 9}, 0)
    found = json.loads(Path(done.uri).read_text())
    assert (found["run"], found["plan"], found["chunks"], found["rows"]) == (run.run_id, 1, 4, 9)
    assert found["files"] == [
        {"name": name, "size": path.stat().st_size, "sha256": storage.digest(path.read_bytes())}
        for name in ("plans/000001.parquet", "run.json")
        for path in [Path(run.uri, name)]
    ]
    masks = sorted(Path(run.uri, "masks").iterdir())
    assert found["objects"] == [
        {
            "name": f"masks/{path.name}",
            "size": path.stat().st_size,
            "sha256": storage.digest(path.read_bytes()),
            "rows": item["rows"],
            "statuses": {"ok": item["rows"]},
        }
        for path, item in zip(masks, found["objects"], strict=True)
    ]
    assert _success(run)["manifest"] == "manifests/000001.json"
    assert _success(run)["sha256"] == storage.digest(Path(done.uri).read_bytes()) == done.sha256


def test_an_unfinished_run_has_none(tmp_path: Path) -> None:
    write_images(tmp_path / "in", *(f"{name}.png" for name in "abcde"))
    run, log = start_run(tmp_path)
    next(commit_pending(run, log))
    with pytest.raises(IncompleteError, match=r"1 of 2 chunks are pending in .*; run the command again"):
        finish(run, log)
    assert not Path(run.uri, "manifests").exists()
    assert not Path(run.uri, "_SUCCESS").exists()


def test_receipts_and_reading_give_the_same_manifest(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    run, log = start_run(tmp_path, rows=1)
    receipts = [commit_chunk(run, result_rows(run, ref, Columns())) for ref in pending_chunks(log)]
    first = finish(run, log, receipts)
    Path(first.uri).unlink()
    assert finish(run, log, receipts[:1]).sha256 == first.sha256
    Path(first.uri).unlink()
    assert finish(run, log).sha256 == first.sha256


def test_a_finished_run_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", "a.png")
    finished_run(tmp_path)
    write_images(tmp_path / "in", "b.png")
    run, log = start_run(tmp_path)
    list(commit_pending(run, log))
    read: list[str] = []
    original = module.read_receipt
    monkeypatch.setattr(module, "read_receipt", lambda run, name, rows: read.append(name) or original(run, name, rows))
    assert finish(run, log).rows == 2
    assert len(read) == 1, "only what the manifest before does not have"
    assert finish(run, log).rows == 2
    assert len(read) == 1
    assert _success(run)["manifest"] == "manifests/000002.json"


def test_success_never_goes_back(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    run, old_log = start_run(tmp_path)
    list(commit_pending(run, old_log))
    finish(run, old_log)
    write_images(tmp_path / "in", "b.png")
    finished_run(tmp_path)
    assert finish(run, old_log).plan == 1, "by a job that has slept since"
    assert _success(run)["manifest"] == "manifests/000002.json"


def test_success_does_not_stay_back_after_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer manifest and its _SUCCESS come after this job looked, and before it writes."""
    write_images(tmp_path / "in", "a.png")
    run, log = start_run(tmp_path)
    list(commit_pending(run, log))
    replace = storage.replace

    def replace_late(uri: str, data: bytes) -> None:
        monkeypatch.undo()
        write_images(tmp_path / "in", "b.png")
        finished_run(tmp_path)
        replace(uri, data)

    monkeypatch.setattr(storage, "replace", replace_late)
    assert finish(run, log).plan == 1
    assert _success(run)["manifest"] == "manifests/000002.json"


def test_success_is_mended(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    run = finished_run(tmp_path)
    Path(run.uri, "_SUCCESS").write_text("torn")
    finished_run(tmp_path)
    assert _success(run)["plan"] == 1


def test_an_empty_input_is_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    run, log = start_run(tmp_path)
    done = finish(run, log)
    assert (done.plan, done.chunks, done.rows, done.statuses) == (0, 0, 0, {})


def test_a_manifest_that_says_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", "a.png")
    run = finished_run(tmp_path)
    path = Path(run.uri, "manifests", "000001.json")
    path.write_text(path.read_text().replace('"rows": 1', '"rows": 2'))
    run, log = start_run(tmp_path)
    with monkeypatch.context() as patch:  # the other job's manifest comes after this one looked
        patch.setattr(storage, "is_file", lambda uri: False)
        with pytest.raises(AuditError, match="does not describe the objects that are there"):
            finish(run, log)
    path.write_text("{}")
    with pytest.raises(AuditError, match=r"000001\.json is damaged"):
        finish(run, log)
