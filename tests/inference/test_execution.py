"""What of a job is Ray's: room for its actors, and pipelines over its chunks; without Ray itself."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from fcn_ray import cluster
from fcn_ray.bundle import Bundle
from fcn_ray.config import ModelSpec, PredictConfig, SegmentConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import ResourceError
from fcn_ray.inference import execution
from fcn_ray.inference.execution import count_actors, require_memory, run_chunks
from fcn_ray.inference.shares import Memory
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run
from tests.tables.making import LABELS

# ------------------------------------------------------------------------------------------------------------- memory


def _config(**settings: object) -> SegmentConfig:
    return load_config(SegmentConfig, flags={"input": "in", "output": "out", "model": "bundle"} | settings)


def test_what_to_do_about_missing_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_alive", lambda: [{"CPU": 8.0, "memory": 11e9}])
    needed = Memory(prepare=10**9, predict=3 * 10**9, commit=10**8)
    require_memory(needed, 3, _config().predict)
    with pytest.raises(ResourceError, match=r"^4 prediction actors with 3.0 GB .* room for 3: take fewer actors,"):
        require_memory(needed, 4, _config().predict)


NEEDED = Memory(prepare=700_000_000, predict=4_600_000_000, commit=300_000_000)


@pytest.mark.parametrize(
    ("nodes", "actors", "fits"),
    [
        ([{"CPU": 4.0, "memory": 5e9}] * 2, 2, False),  # 0.8 GB are left, on two nodes
        ([{"CPU": 4.0, "memory": 5e9}, {"CPU": 4.0, "memory": 5.7e9}], 2, True),
        ([{"CPU": 0.0, "memory": 10e9}, {"CPU": 4.0, "memory": 5e9}], 1, False),  # a head that runs nothing
        ([{"memory": 10e9}, {"CPU": 4.0, "memory": 6e9}], 1, True),
        ([], 1, False),
    ],
)
def test_what_feeds_the_actors_has_room_on_one_node(
    nodes: list[dict[str, float]], actors: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_alive", lambda: nodes)
    if fits:
        require_memory(NEEDED, actors, _config().predict)
        return
    with pytest.raises(ResourceError, match=r"leave no 1.0 GB of memory on one node|do not fit"):
        require_memory(NEEDED, actors, _config().predict)


def test_nobody_chooses_more_actors_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = {"CPU": 2.0, "memory": 3e9}, {"CPU": 16.0, "memory": 10e9, "GPU": 1.0}
    monkeypatch.setattr(cluster, "_alive", lambda: [small, large])
    assert count_actors(_config().predict, NEEDED) == 1, "one for each node that holds one"
    assert count_actors(_config(**{"predict.gpus": 0.1}).predict, NEEDED) == 2, "not ten"
    assert count_actors(_config(**{"predict.actors": 7}).predict, NEEDED) == 7, "who asks is refused, if need be"


# ---------------------------------------------------------------------------------------------------------- pipelines


class Pipelines:
    """In the place of `build_pipeline`: what each was given, and what comes out of it, a receipt for each chunk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[Sequence[ChunkRef]] = []
        self.batches: list[Generator[pa.Table, None, None]] = []
        monkeypatch.setattr(execution, "build_pipeline", self.build)
        monkeypatch.setattr(cluster, "count_nodes", lambda **_: 1)

    def build(self, chunks: Sequence[ChunkRef], *_: Any) -> Any:
        receipts = [Receipt(chunk.chunk_id, 1, 1, "", {"ok": 1}, True) for chunk in chunks]
        self.given.append(chunks)
        self.batches.append(pa.table({"receipt": [json.dumps(asdict(receipt))]}) for receipt in receipts)
        return SimpleNamespace(iter_batches=lambda **_: self.batches[-1])

    def run(self, count: int) -> Generator[Receipt, None, None]:
        config = SegmentConfig(input="in", output="out", model="bundle", predict=PredictConfig(actors=1))
        bundle = Bundle("bundle", ModelSpec(num_classes=2), LABELS, None, {}, "feed", "", 0, "float32")  # type: ignore[arg-type]
        run = Run("out/run=feed", "feed", "in", LABELS)
        chunks = [ChunkRef(str(index), 1, index, index, 1) for index in range(count)]
        return run_chunks(config, bundle, "float32", run, Columns(), chunks)


def test_who_closes_the_receipts_closes_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines = Pipelines(monkeypatch)
    receipts = pipelines.run(9)
    assert next(receipts).chunk_id == "0"
    receipts.close()
    assert [batches.gi_frame for batches in pipelines.batches] == [None]


def test_no_pipeline_has_more_chunks_than_ray_may_keep_notes_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "CHUNKS_A_PASS", 4)
    pipelines = Pipelines(monkeypatch)
    receipts = pipelines.run(9)
    assert next(receipts).chunk_id == "0"
    assert len(pipelines.given) == 1, "the next begins when this one has ended"
    assert [receipt.chunk_id for receipt in receipts] == list("12345678")
    assert [len(chunks) for chunks in pipelines.given] == [4, 4, 1]
