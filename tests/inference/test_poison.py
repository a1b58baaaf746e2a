"""Pictures that take processes down, in a whole job: each is one row, and the job completes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
from ray.data import Dataset
from ray.data._internal.logical.operators.map_operator import StreamingRepartition

from fcn_ray.bundle import load_bundle
from fcn_ray.config import ChunkConfig, PredictConfig
from fcn_ray.images.codec import encode_image
from fcn_ray.inference import pipeline
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.pipeline import Actors, build_pipeline
from fcn_ray.inference.predictor import Prediction, Predictor
from fcn_ray.inference.preparing import PrepareChunks
from fcn_ray.inference.shares import Memory, Shares
from fcn_ray.inference.stages import CommitChunks, DecodeImages, ReadChunks
from fcn_ray.tables.audit import audit
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.plan import extend_plan, pending_chunks
from fcn_ray.tables.runs import open_run
from tests import pictures
from tests.inference import poisoning

pytestmark = [pytest.mark.ray, pytest.mark.keras, pytest.mark.slow]

KILLER = 99
"""A picture of this grey takes down the process that predicts it."""


def _statuses(output: Path) -> dict[str, str]:
    tables = [pq.read_table(file) for file in output.glob("run=*/masks/*.parquet")]
    return {row["image_id"]: row["status"] for table in tables for row in table.to_pylist()}


def test_poison_for_the_decoder_is_one_row_each(tmp_path: Path, tiny_bundle: Path) -> None:
    """A segmentation fault, a hang and a hog, among 21 good pictures; whole chunks of each."""
    pictures.write_folder(tmp_path / "in", 21)
    for what in ("kill", "hang", "fill"):
        (tmp_path / "in" / f"picture-0{what}.png").write_bytes(poisoning.encode_poison(what))
    path = os.pathsep.join(filter(None, [poisoning.FOLDER, os.environ.get("PYTHONPATH", "")]))
    limits = ["--set", "decode_seconds=4", "--set", "decode_memory=500000000", "--set", "chunk.rows=8"]
    command = ["segment", f"{tmp_path}/in", f"{tmp_path}/out", "--model", str(tiny_bundle), *limits]
    run = subprocess.run(
        [sys.executable, "-m", "fcn_ray", *command],
        env=os.environ | {"PYTHONPATH": path, "POISON_LOG": f"{tmp_path}/log"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    statuses = _statuses(tmp_path / "out")
    bad = {name: status for name, status in statuses.items() if status != "ok"}
    expected = {"kill": "crash", "hang": "timeout", "fill": "too_big"}
    assert bad == {f"picture-0{what}.png": status for what, status in expected.items()}
    assert len(statuses) == 24
    assert audit(f"{tmp_path}/out").ok
    met = Counter((tmp_path / "log").read_text().split())
    assert set(met) == {"kill", "hang", "fill"}
    assert max(met.values()) <= 3, "each costs three processes at most"


class _MortalPredictor(Predictor):
    """Dies of some pictures, as a driver of a device may."""

    def predict(self, images: list[np.ndarray]) -> list[Prediction | Exception]:
        if any((image == KILLER).all() for image in images):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().predict(images)


def _write_greys(folder: Path, killers: set[int]) -> dict[str, str]:
    """Twelve pictures, and the statuses that they must get."""
    folder.mkdir()
    for number in range(12):
        image = np.full((20, 30, 3), KILLER if number in killers else number, np.uint8)
        (folder / f"{number:02}.png").write_bytes(encode_image(image, "PNG"))
    return {f"{number:02}.png": "crash" if number in killers else "ok" for number in range(12)}


def _build_pipeline(root: Path, bundle_folder: Path, settings: PredictConfig) -> Dataset:
    """What is left to do of `root/in`, four pictures a chunk, with one mortal actor."""
    bundle = load_bundle(str(bundle_folder))
    run = open_run(f"{root}/out", f"{root}/in", {"model": bundle.digest}, bundle.labels)
    log = extend_plan(run.uri, run.input, ChunkConfig(rows=4), Columns())
    arguments = {"bundle": bundle, "config": settings, "run_uri": run.uri}
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return build_pipeline(
        list(pending_chunks(log)),
        PrepareChunks(
            ReadChunks(run.uri, understand_input(run.input), Columns()), DecodeImages(10**6), Limits(60, 2**31)
        ),
        Actors(_MortalPredictor, arguments, 1),
        CommitChunks(run, bundle.labels, bundle.digest),
        Shares(Memory(prepare=3_000_000, predict=2_000_000, commit=1_000_000), settings, 0.5),
    )


@pytest.mark.usefixtures("ray_session")
def test_poison_for_the_network_is_one_row_each(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two killers in one of three chunks, which are described in two blocks."""
    monkeypatch.setattr(pipeline, "CHUNKS_A_BLOCK", 2)
    expected = _write_greys(tmp_path / "in", {5, 6})
    dataset = _build_pipeline(tmp_path, tiny_bundle, PredictConfig(threads=1))
    split, reserved = dataset._logical_plan.dag, []
    while not isinstance(split, StreamingRepartition):
        reserved.append(split.ray_remote_args["memory"])
        (split,) = split.input_dependencies
    assert reserved == [1_000_000, 2_000_000, 3_000_000]
    assert split.ray_remote_args == {"num_cpus": 0}, "it would hold the CPU that commits wait for, to the last chunk"
    assert dataset.count() == 3
    assert _statuses(tmp_path / "out") == expected


@pytest.mark.usefixtures("ray_session")
def test_actors_that_die_too_often_end_the_job_and_the_next_goes_on(tmp_path: Path, tiny_bundle: Path) -> None:
    """A chunk with two killers takes three actors: the first tells which chunk it is, each other one which picture."""
    expected = _write_greys(tmp_path / "in", {5, 6})
    settings = PredictConfig(threads=1, max_restarts=2)
    dataset = _build_pipeline(tmp_path, tiny_bundle, settings)
    steps = dataset._logical_plan.dag.post_order_iter()
    assert not any(isinstance(step, StreamingRepartition) for step in steps), "a process more to start, for few chunks"
    with pytest.raises(ray.exceptions.RayError):
        dataset.count()
    assert audit(f"{tmp_path}/out").findings == []
    _build_pipeline(tmp_path, tiny_bundle, settings).count()
    assert _statuses(tmp_path / "out") == expected
