"""`fcn-ray demo` as a newcomer meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fcn_ray.evaluation import evaluate
from fcn_ray.tables.audit import audit

pytestmark = [pytest.mark.ray, pytest.mark.keras, pytest.mark.slow, pytest.mark.timeout(600)]


def _demo(out: Path) -> str:
    command = [sys.executable, "-m", "fcn_ray", "demo", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_demo_trains_segments_and_scores_and_knows_what_it_has_done(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    text = _demo(out)
    for part in ("bundle", "collection", "masks", "report.html"):
        assert (out / part).exists()
    for status in ("1 empty", "1 not_image", "1 truncated"):
        assert status in text
    (run,) = (out / "masks").glob("run=*")
    evaluation = evaluate(str(run), str(out / "collection" / "labels"))
    assert evaluation.scores.mean_iou >= 0.85
    assert audit(str(out / "masks")).ok
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 30
    assert "://" not in page, "the page must hold all that it shows"

    again = _demo(out)
    assert "nothing to do" in again
    assert "skipped, there already: training scenes, validation scenes, collection, bundle" in again
