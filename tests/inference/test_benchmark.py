"""The benchmark of a job beside its network: what it says, and when there is nothing to say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_ray.config import SegmentConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import ConfigError
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
        ({"labelled": 0, "skipped": 10}, "has all its masks, so nothing was measured: choose another output"),
        ({"images_per_second": None}, "10 images are one chunk, and tell no rate"),
    ],
)
def test_a_job_that_tells_nothing_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "segment", lambda *_, **__: replace(JOB, **changes))
    with pytest.raises(ConfigError, match=message):
        benchmark(_config(tmp_path, "bundle"))


@pytest.mark.ray
@pytest.mark.keras
@pytest.mark.usefixtures("ray_session")
def test_a_job_and_its_network_on_two_actors(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.5)
    (tmp_path / "in").mkdir()
    pictures.write_parquet(tmp_path / "in" / "rows.parquet", 12, sizes=((48, 64), (20, 32)))
    (tmp_path / "in" / "bad.png").write_bytes(encode_image(np.zeros((20, 30, 3), np.uint8), "PNG")[:60])
    report = benchmark(_config(tmp_path, tiny_bundle, **{"predict.actors": 2}))
    assert (report.job.labelled, report.job.bad) == (13, 1)
    assert len(report.network) == 2
    assert all(rate > 0 for rate in report.network)
    assert 20 * 32 / 1e6 < report.megapixels < 48 * 64 / 1e6
    assert 0 < report.ratio < float("inf")
    assert re.fullmatch(r"the job reached \d+\.\d\d of it", list(report.lines())[-1])


@pytest.mark.ray
@pytest.mark.keras
@pytest.mark.usefixtures("ray_session")
def test_without_a_mask_there_are_no_sizes(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"no image of .* has a mask: .*run=.* says why"):
        benchmark(_config(tmp_path, tiny_bundle, **{"chunk.rows": 1}))
