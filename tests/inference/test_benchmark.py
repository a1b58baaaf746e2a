"""The benchmark of a job beside its network: what it says, and when there is nothing to say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fcn_ray.bundle import load_bundle
from fcn_ray.config import PredictConfig, SegmentConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.images.codec import encode_image
from fcn_ray.inference import benchmark as measuring
from fcn_ray.inference.benchmark import BenchmarkReport, benchmark
from fcn_ray.inference.report import SegmentReport
from tests import pictures

JOB = SegmentReport("out/run=feed", 10, 10, 0, {"ok": 10}, first_commit_seconds=2.0, images_per_second=6.0)


def _config(folder: Path, bundle: Path | str, **flags: Any) -> SegmentConfig:
    places = {"input": f"{folder}/in", "output": f"{folder}/out", "model": str(bundle), "predict.threads": 1}
    return load_config(SegmentConfig, flags=places | {"chunk.rows": 4} | flags)


def test_the_ratio_is_that_of_the_job_to_all_networks() -> None:
    report = BenchmarkReport(JOB, (5.0, 7.0), 0.25)
    assert report.ratio == 0.5
    assert list(report.lines())[-3:] == [
        "start: 2.0 s to the first chunk",
        "the network alone: 12.0 images/s of 0.25 megapixels on 2 actors (5.0, 7.0)",
        "the job reached 0.50 of it",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled": 0, "skipped": 10}, "had masks before, so nothing was measured: choose another output"),
        ({"skipped": 1}, "had masks before"),
        ({"found": 4}, "had masks before"),
        ({"images_per_second": None}, "10 images tell no rate: take 12 and more, 3 chunks"),
        ({"images_per_second": 0.0}, "tell no rate"),
        ({}, "10 images tell no rate"),
    ],
)
def test_a_job_that_tells_nothing_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "segment", lambda *_, **__: replace(JOB, **changes))
    with pytest.raises(ConfigError, match=message):
        benchmark(_config(tmp_path, "bundle"))


@pytest.mark.keras
def test_a_job_without_work_for_all_actors_is_refused(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has had fewer actors, and would be compared with all of them."""
    monkeypatch.setattr(measuring, "segment", lambda *_, **__: replace(JOB, labelled=23))
    monkeypatch.setattr(measuring, "count_actors", lambda *_: 2)
    with pytest.raises(ConfigError, match="23 images do not keep 2 actors busy: take 24 and more, 3 chunks for each"):
        benchmark(_config(tmp_path, tiny_bundle))


@pytest.mark.ray
@pytest.mark.keras
@pytest.mark.usefixtures("ray_session")
def test_a_job_and_its_network_on_two_actors(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.5)
    (tmp_path / "in").mkdir()
    pictures.write_parquet(tmp_path / "in" / "rows.parquet", 24, sizes=((48, 64), (20, 32)))
    (tmp_path / "in" / "bad.png").write_bytes(encode_image(np.zeros((20, 30, 3), np.uint8), "PNG")[:60])
    report = benchmark(_config(tmp_path, tiny_bundle, **{"predict.actors": 2}))
    assert (report.job.labelled, report.job.bad) == (25, 1)
    assert len(report.network) == 2
    assert all(rate > 0 for rate in report.network)
    assert 20 * 32 / 1e6 < report.megapixels < 48 * 64 / 1e6
    assert 0 < report.ratio < float("inf")
    assert re.fullmatch(r"the job reached \d+\.\d\d of it", list(report.lines())[-1])


@pytest.mark.keras
def test_a_network_that_fails_counts_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(str(tiny_bundle))
    tiled = PredictConfig(threads=0).model_copy(update={"tile_pixels": 32 * 32})
    arguments = {"bundle": bundle, "config": tiled}
    with pytest.raises(StorageError, match="nowhere"):
        measuring._Alone(arguments | {"bundle": replace(bundle, folder=f"{tmp_path}/nowhere")}, [(32, 32)]).predict()
    alone = measuring._Alone(arguments, [(32, 32), (2000, 2000)])
    with pytest.raises(ValueError, match="tile"):
        alone.predict()


def test_a_sample_has_the_room_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.table({"height": [10, 20, 30], "width": [10, 20, 30]})
    monkeypatch.setattr(measuring, "read_masks", lambda *_: SimpleNamespace(head=lambda *_, **__: rows))
    for room, count in ((299, 1), (1499, 1), (1500, 2), (10**6, 3)):
        monkeypatch.setattr(measuring, "PIXELS_ROOM", room)
        assert measuring._sample(_config(tmp_path, "bundle"), "out/run=feed") == [(10, 10), (20, 20), (30, 30)][:count]


@pytest.mark.ray
@pytest.mark.keras
@pytest.mark.usefixtures("ray_session")
def test_without_a_mask_there_are_no_sizes(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"no image of .* has a mask: .*run=.* says why"):
        benchmark(_config(tmp_path, tiny_bundle, **{"chunk.rows": 1}))
