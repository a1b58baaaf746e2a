"""Labelling for real: Ray Data, actors, kills and reruns. Every image must come out exactly once, whatever happens."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from fcn_ray.bundle import load_bundle
from fcn_ray.config import SegmentConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import BundleError, ConfigError, ForeignOutputError, ResourceError
from fcn_ray.images.codec import encode_image
from fcn_ray.inference import execution
from fcn_ray.inference.job import segment
from fcn_ray.tables import schema
from fcn_ray.tables.audit import audit
from tests import pictures

pytestmark = [pytest.mark.ray, pytest.mark.keras]


def _config(input: Path, output: Path, bundle: Path, **flags: Any) -> SegmentConfig:
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    places = {"input": str(input), "output": str(output), "model": str(bundle), "predict.threads": 1}
    return load_config(SegmentConfig, flags=places | {"chunk.rows": 4} | dotted)


def _rows(output: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(output.glob("run=*/masks/*.parquet")) for row in pq.read_table(file).to_pylist()]


def _stamps(output: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in output.glob("run=*/masks/*.parquet")}


def _status(output: Path) -> dict[str, Any]:
    (file,) = output.glob("run=*/status.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 pictures in a table and in folders, of several sizes, and five things that are no pictures."""
    folder = tmp_path_factory.mktemp("collection")
    pictures.write_parquet(folder / "rows.parquet", 6, sizes=((48, 64), (33, 65), (20, 31)), group=3)
    pictures.write_folder(folder / "files", 5)
    good = encode_image(np.zeros((20, 30, 3), np.uint8))
    (folder / "files" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "files" / "page.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    (folder / "files" / "zero.jpg").write_bytes(b"")
    (folder / "files" / "big.png").write_bytes(encode_image(np.zeros((100, 100, 3), np.uint8), "PNG"))
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.mark.usefixtures("ray_session")
def test_one_image_in_one_row_out_then_again_then_more(mixed: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    output = tmp_path / "masks"
    report = segment(_config(mixed, output, tiny_bundle, max_pixels=9_000))
    assert (report.images, report.labelled, report.skipped, report.bad) == (15, 15, 0, 4)
    assert report.statuses == {"empty": 1, "not_image": 1, "ok": 11, "too_big": 1, "truncated": 1}
    assert report.skipped_files == {".txt": 1}
    found = audit(str(output), source=True)
    assert (found.ok, found.compared, found.others) == (True, 11, 0)

    rows = _rows(output)
    assert len({row[schema.IMAGE_ID] for row in rows}) == 15
    for row in rows:
        if row[schema.STATUS] == schema.OK:
            mask = np.asarray(Image.open(io.BytesIO(row[schema.MASK]["bytes"])))
            assert mask.shape == (row[schema.HEIGHT], row[schema.WIDTH])
            assert row[schema.CLASS_PIXELS] == np.bincount(mask.ravel(), minlength=3).tolist()
        else:
            assert row[schema.MASK] is None
            assert row[schema.ERROR]
    by_id = {row[schema.IMAGE_ID]: row for row in rows}
    assert by_id["rows.parquet#4"]["name"] == "picture-4"
    assert by_id["files/cut.jpg"][schema.STATUS] == "truncated"
    assert (by_id["rows.parquet#1"][schema.HEIGHT], by_id["rows.parquet#1"][schema.WIDTH]) == (33, 65)
    assert (_status(output)["state"], _status(output)["exit_code"], _status(output)["bad"]) == ("complete", 0, 4)

    before = _stamps(output)
    strict = segment(_config(mixed, output, tiny_bundle, max_pixels=9_000, max_bad_fraction=0.25))
    assert (strict.too_bad, _status(output)["exit_code"]) == (True, 3)
    again = segment(_config(mixed, output, tiny_bundle, max_pixels=9_000, max_bad_fraction=0.3))
    assert not again.too_bad
    assert (again.labelled, again.skipped, again.statuses) == (0, 15, report.statuses)
    assert _stamps(output) == before

    added = mixed / "files" / "aaa-first.png"
    added.write_bytes(encode_image(np.zeros((16, 16, 3), np.uint8), "PNG"))
    try:
        dry = segment(_config(mixed, output, tiny_bundle, max_pixels=9_000), dry_run=True)
        assert (dry.dry_run, dry.images, dry.skipped) == (True, 16, 15)
        assert _stamps(output) == before
        more = segment(_config(mixed, output, tiny_bundle, max_pixels=9_000))
    finally:
        added.unlink()
    assert (more.labelled, more.skipped) == (1, 15)
    assert {name: _stamps(output)[name] for name in before} == before
    assert audit(str(output)).ok


@pytest.mark.usefixtures("ray_session")
def test_a_status_that_cannot_be_written_stops_no_job(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, output = pictures.write_parquet(tmp_path / "in.parquet", 3), tmp_path / "masks"
    run = segment(_config(source, output, tiny_bundle), dry_run=True).run
    (Path(run) / "status.json").mkdir(parents=True)  # a folder in its place
    report = segment(_config(source, output, tiny_bundle))
    assert (report.run, report.labelled, report.statuses) == (run, 3, {"ok": 3})
    assert f"status.json is not current: {run}/status.json cannot be written" in caplog.text
    assert audit(str(output)).ok


@pytest.mark.usefixtures("ray_session")
def test_too_many_bad_images_end_the_job_and_its_actors(tmp_path: Path, tiny_bundle: Path) -> None:
    for index in range(60):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{index:02}.jpg").write_bytes(b"<html>")
    report = segment(_config(tmp_path / "in", tmp_path / "masks", tiny_bundle, chunk__rows=1, max_bad_consecutive=3))
    assert (report.too_bad, report.labelled, report.left) == (True, 3, 57)
    assert report.stopped == "3 images in a row are bad, max_bad_consecutive is 3"
    assert (_status(tmp_path / "masks")["state"], _status(tmp_path / "masks")["exit_code"]) == ("stopped", 3)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the actors hold their CPUs"
        time.sleep(0.1)
    done = len(_stamps(tmp_path / "masks"))
    assert 3 <= done < 60
    found = audit(str(tmp_path / "masks"))
    assert (found.n_findings, found.incomplete) == (0, True)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("error:The minimum number of concurrent actors")
def test_the_mask_does_not_depend_on_chunks_passes_or_actors_and_another_bundle_is_another_run(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures.write_parquet(tmp_path / "in.parquet", 9, sizes=((48, 64), (33, 65)))
    with monkeypatch.context() as patch:
        patch.setattr(execution, "CHUNKS_A_PASS", 3)
        first = segment(_config(source, tmp_path / "a", tiny_bundle, chunk__rows=2))
    assert first.labelled == 9, "in two passes"
    second = segment(_config(source, tmp_path / "b", tiny_bundle, chunk__rows=5, predict__actors=3))
    assert Path(first.run).name == Path(second.run).name

    def masks(output: Path) -> dict[str, bytes]:
        return {row[schema.IMAGE_ID]: row[schema.MASK]["bytes"] for row in _rows(output)}

    assert masks(tmp_path / "a") == masks(tmp_path / "b")
    third = segment(_config(source, tmp_path / "a", tiny_bundle, max_pixels=1_000_000))
    assert third.run != first.run
    assert third.labelled == 9
    assert audit(str(tmp_path / "a")).ok


# ---------------------------------------------------------------------------------------------------------- kills


def _start(source: Path, output: Path, bundle: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fcn_ray", "segment", str(source), str(output), "--model", str(bundle)]
    command += ["--set", "chunk.rows=1", "--set", "predict.threads=1"]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _wait_for_chunks(run: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while len(_stamps(output)) < count:
        assert run.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _pids(session: int, name: str) -> list[int]:
    """Processes of a session whose title holds `name`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            pid = int(process.name)
            if os.getsid(pid) == session and name in (process / "cmdline").read_text():
                found.append(pid)
        except (ValueError, OSError):
            continue
    return found


@pytest.mark.slow
def test_killed_driver_then_rerun_gives_every_image_once(tmp_path: Path, tiny_bundle: Path) -> None:
    source, output = pictures.write_parquet(tmp_path / "in.parquet", 120, group=40), tmp_path / "masks"
    with _start(source, output, tiny_bundle) as run:
        _wait_for_chunks(run, output, 10)
        run.kill()
    # Workers that outlive their driver may still commit; what they commit is right, and counts. Then they go too.
    deadline = time.monotonic() + 10
    while _pids(run.pid, "ray::") and time.monotonic() < deadline:
        time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    before = _stamps(output)
    assert 10 <= len(before) < 120, "it must have been killed in the middle"
    report = audit(str(output))
    assert (report.n_findings, report.incomplete) == (0, True)

    with _start(source, output, tiny_bundle) as rerun:
        text, _ = rerun.communicate(timeout=200)
    assert rerun.returncode == 0, text
    assert f"{len(before)} images skipped" in text
    assert Counter(row[schema.IMAGE_ID] for row in _rows(output)) == Counter(f"in.parquet#{i}" for i in range(120))
    assert {name: _stamps(output)[name] for name in before} == before
    assert audit(str(output)).ok


@pytest.mark.slow
def test_killed_actor_is_replaced_and_nothing_is_lost(tmp_path: Path, tiny_bundle: Path) -> None:
    source, output = pictures.write_parquet(tmp_path / "in.parquet", 120, group=40), tmp_path / "masks"
    with _start(source, output, tiny_bundle) as run:
        _wait_for_chunks(run, output, 5)
        actors = _pids(run.pid, "ray::MapWorker")
        assert actors, "the actor that holds the network must be there"
        for pid in actors:
            os.kill(pid, signal.SIGKILL)
        text, _ = run.communicate(timeout=200)
    assert run.returncode == 0, text
    assert Counter(row[schema.IMAGE_ID] for row in _rows(output)) == Counter(f"in.parquet#{i}" for i in range(120))
    assert audit(str(output)).ok


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_job_in_a_state_that_goes_on(
    tmp_path: Path, tiny_bundle: Path, number: signal.Signals, code: int
) -> None:
    source, output = pictures.write_parquet(tmp_path / "in.parquet", 120, group=40), tmp_path / "masks"
    with _start(source, output, tiny_bundle) as run:
        _wait_for_chunks(run, output, 3)
        run.send_signal(number)
        text, _ = run.communicate(timeout=60)
    assert run.returncode == code, text
    assert "the same command goes on" in text
    assert _status(output)["state"] == "stopped"
    report = audit(str(output))
    assert (report.n_findings, report.incomplete) == (0, True)


# -------------------------------------------------------------------------------------- refused before any actor


def test_what_cannot_be_labelled_is_refused_before_ray_starts(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_ray.cluster.connect", lambda *_, **__: pytest.fail("Ray must not be started"))
    source, output = pictures.write_parquet(tmp_path / "in.parquet", 2), tmp_path / "masks"
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in tiny_bundle.iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            data[-1] ^= 1
        (changed / file.name).write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        segment(_config(source, output, changed))
    with pytest.raises(BundleError):
        segment(_config(source, output, tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nothing-here does not exist"):
        segment(_config(tmp_path / "nothing-here", output, tiny_bundle))
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ForeignOutputError, match=r"photo\.jpg"):
        segment(_config(source, tmp_path / "family", tiny_bundle))
    with pytest.raises(ForeignOutputError, match=r"photo\.jpg"):
        segment(_config(source, tmp_path / "family", tiny_bundle), dry_run=True)
    assert [file.name for file in (tmp_path / "family").iterdir()] == ["photo.jpg"]


@pytest.mark.usefixtures("ray_session")
def test_more_actors_than_the_cluster_holds_are_refused_and_only_the_plan_is_written(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    source, output = pictures.write_parquet(tmp_path / "in.parquet", 2), tmp_path / "masks"
    with pytest.raises(ResourceError, match=r"3 prediction actors of 1 CPUs and 1 GPUs each do not fit, .* 0 GPUs"):
        segment(_config(source, output, tiny_bundle, predict__actors=3, predict__gpus=1))
    written = {file.relative_to(output).parts[1] for file in output.rglob("*") if file.is_file()}
    assert written == {"run.json", "plans", "status.json", "lock.json"}
    assert load_bundle(str(tiny_bundle)).digest == _status_digest(output)


def _status_digest(output: Path) -> str:
    (file,) = output.glob("run=*/run.json")
    return str(json.loads(file.read_text())["identity"]["model"])


def test_another_size_of_tiles_is_another_run(mixed: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """A network without tiles refuses larger images, and what was refused once must not stay so for ever."""
    runs = [
        segment(_config(mixed, tmp_path, tiny_bundle, predict__tile_pixels=pixels), dry_run=True).run
        for pixels in (2_097_152, 2_097_152, 8_388_608)
    ]
    assert runs[0] == runs[1] != runs[2]
