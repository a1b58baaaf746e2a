"""A labelling job from store to store, as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.images.codec import encode_image
from fcn_ray.storage import answers
from fcn_ray.tables.audit import audit
from tests.s3 import Shim, answer

pytestmark = [pytest.mark.ray, pytest.mark.s3]


def _image(height: int, width: int, kind: str = "PNG") -> bytes:
    return encode_image(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8), kind)


def _segment(*settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fcn_ray", "segment", "s3://bucket/in", "s3://bucket/out", "--model"]
    return subprocess.run(
        [*command, "s3://bucket/model", "--set", "chunk.rows=4", *settings],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.mark.slow
def test_from_store_to_store(s3: Shim, tmp_path: Path, tiny_bundle: Path) -> None:
    for path in tiny_bundle.iterdir():
        storage.put_if_absent(f"s3://bucket/model/{path.name}", path.read_bytes())
    for index in range(5):
        storage.put_if_absent(f"s3://bucket/in/{index}.jpg", _image(20 + index, 33, "JPEG"))
    storage.put_if_absent("s3://bucket/in/bad.jpg", b"<html>")
    rows = [_image(9, 9), _image(33, 70), None]
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), tmp_path / "t.parquet")
    storage.put_if_absent("s3://bucket/in/t.parquet", (tmp_path / "t.parquet").read_bytes())

    s3.fail("GET", *[answer("503 Slow Down", "SlowDown")] * 3)
    first = _segment("--set", "max_bad_fraction=0.5")
    assert first.returncode == 0, first.stderr
    assert "9 images labelled" in first.stdout
    report = audit("s3://bucket/out")
    assert (report.findings, report.unfinished) == ([], [])
    assert report.statuses == {"not_image": 1, "null": 1, "ok": 7}

    s3.fail("none")
    again = _segment("--set", "max_bad_fraction=0.5")
    assert (again.returncode, "nothing to do: all 9 images were done before" in again.stdout) == (0, True)
    assert not [path for method, path in s3.seen if method == "PUT" and "/masks/" in path]

    storage.put_if_absent("s3://bucket/in/more.png", _image(8, 8))
    s3.fail("PUT", always=answer("503 Slow Down", "SlowDown"))
    refused = _segment(FCN_RAY_PATIENCE_SECONDS="1")
    assert refused.returncode == 9
    assert "SlowDown" in refused.stderr
    assert "the same command goes on" in refused.stderr
    assert answers.PATIENCE_SECONDS >= 300

    s3.fail("none")
    last = _segment("--set", "max_bad_fraction=0.5")
    assert last.returncode == 0, last.stderr
    assert "1 images labelled" in last.stdout
    report = audit("s3://bucket/out")
    assert (report.findings, report.unfinished, report.statuses["ok"]) == ([], [], 8)
