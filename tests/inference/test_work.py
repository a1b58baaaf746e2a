"""What a job plans and counts, without the labelling between."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from fcn_ray import storage
from fcn_ray.config import SegmentConfig
from fcn_ray.inference.work import finish_work, order_chunks, plan_work
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run
from tests.tables.failing import commit_all
from tests.tables.making import png, start_run, write_images


def _job(run: Run, retry_failed: str, bad: Mapping[tuple[str, int], str] | None = None) -> Mapping[str, int]:
    config = SegmentConfig(input=run.input, output="out", model="model", retry_failed=retry_failed)
    work = plan_work(run, config, Columns(), None)
    return finish_work(run, work, commit_all(run, work.log, bad or {}))


@pytest.mark.parametrize("retry_failed", ["none", "all"])
def test_a_job_reads_one_manifest_and_that_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retry_failed: str
) -> None:
    """A manifest has a line for each chunk of the run."""
    write_images(tmp_path / "in", "a.png", "b.png", "c.png")
    run, _ = start_run(tmp_path)
    assert _job(run, "none", {("a.png", 0): "crash"}) == {"crash": 1, "ok": 2}
    read: list[str] = []
    read_bytes = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read.append(uri) or read_bytes(uri))

    (tmp_path / "in" / "b.png").write_bytes(png(9))
    counts = {"ok": 3} if retry_failed == "all" else {"crash": 1, "ok": 2}
    for _ in range(2):
        assert _job(run, retry_failed) == counts
    newest = "000003" if retry_failed == "all" else "000002"
    assert _manifests(read) == ["000001", newest], "one by the job that had work, one by the job that had none"


def _manifests(uris: list[str]) -> list[str]:
    return [Path(uri).stem for uri in uris if "/manifests/" in uri]


def test_two_jobs_do_not_go_through_the_chunks_the_same_way() -> None:
    chunks = [ChunkRef(f"{number:064x}", 1, number, 1, 4) for number in range(100)]
    assert order_chunks(chunks, None) == chunks
    shared = [[chunk.first for chunk in order_chunks(chunks, "somebody")] for _ in range(20)]
    assert len({tuple(order) for order in shared}) > 1
    for order in shared:
        assert sorted(order) == list(range(100))
        assert sum(after < before for before, after in pairwise(order)) <= 1, "row groups are read forwards"
    assert order_chunks([], "somebody") == []
