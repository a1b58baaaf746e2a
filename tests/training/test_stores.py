"""A training whose data, checkpoints and bundle lie in an object store, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_ray import storage
from fcn_ray.bundle import load_bundle
from fcn_ray.config_text import dump_config
from fcn_ray.training.checkpoints import find_newest
from tests.s3 import Shim, answer
from tests.training.making import tiny_config, write_data

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(600)]

OUT = "s3://bucket/run"


def test_a_training_in_a_store_goes_on_there(s3: Shim, tmp_path: Path) -> None:
    storage.put_if_absent("s3://bucket/data/train.parquet", write_data(tmp_path).read_bytes())
    config = tiny_config(tmp_path / "train.parquet", tmp_path / "run", checkpoint_steps=2, epochs=1)
    file = tmp_path / "train.yaml"
    file.write_text(dump_config(config.model_copy(update={"data": "s3://bucket/data", "val": "s3://bucket/data"})))
    command = [sys.executable, "-m", "fcn_ray", "train", "--config", str(file), "--out", OUT]

    s3.fail("PUT", *[answer("503 Slow Down", "SlowDown")] * 2)
    first = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert first.returncode == 0, first.stderr
    assert load_bundle(f"{OUT}/bundle").metadata["metrics"]
    assert "<html" in storage.read_bytes(f"{OUT}/report.html").decode()

    again = subprocess.run([*command, "--epochs", "2", "--resume"], capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    newest = find_newest(OUT)
    assert newest is not None
    assert newest.step == 6
    curve = [json.loads(line) for line in storage.read_bytes(f"{OUT}/metrics.jsonl").decode().splitlines()]
    assert [record["epoch"] for record in curve if record["kind"] == "epoch"] == [1, 2]
