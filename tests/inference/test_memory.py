"""What a job reserves: the formula beside what a network really takes, and what is said when it is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fcn_ray import cluster
from fcn_ray.bundle import Bundle
from fcn_ray.config import Architecture, ModelSpec, SegmentConfig
from fcn_ray.config_text import load_config
from fcn_ray.errors import ResourceError
from fcn_ray.inference import memory
from fcn_ray.inference.job import count_actors
from fcn_ray.inference.pipeline import Memory
from fcn_ray.inference.stages import PIXELS_ROOM
from tests.benchmarks import predict_memory
from tests.tables.making import LABELS

MIB = 1 << 20


def _config(**settings: object) -> SegmentConfig:
    return load_config(SegmentConfig, flags={"input": "in", "output": "out", "model": "bundle"} | settings)


def _bundle(weights: int = 0, **spec: object) -> Bundle:
    built = ModelSpec.model_validate({"num_classes": 11} | spec)
    return Bundle("bundle", built, LABELS, None, {}, "feed", "", weights, "float32")  # type: ignore[arg-type]


def test_a_chunk_s_pixels_and_bytes_are_reserved_where_they_are() -> None:
    small, large = (memory.reserve(_config(**{"chunk.bytes": count}), _bundle()) for count in (10**6, 10**8))
    assert large.prepare - small.prepare == 99 * 10**6
    assert (large.predict, large.commit) == (small.predict, small.commit)
    assert small.prepare > 10**6 + PIXELS_ROOM


def test_an_actor_reserves_for_the_larger_of_features_and_scores() -> None:
    def actor(**spec: object) -> int:
        return memory.reserve(_config(), _bundle(**spec)).predict

    assert actor(width=1) > actor(width=0.5) > actor(width=0.25)
    assert actor(num_classes=150) > actor(num_classes=100)
    assert actor(num_classes=20, width=1) == actor(num_classes=2, width=1), "features are the larger"


def test_an_actor_reserves_for_the_larger_of_batch_and_tile() -> None:
    def actor(**settings: int) -> int:
        return memory.reserve(
            _config(**{f"predict.{name}": value for name, value in settings.items()}), _bundle()
        ).predict

    assert actor(batch_pixels=2**22) > actor() == actor(batch_pixels=1)
    assert actor(tile_pixels=2**22) > actor()


def test_weights_are_reserved_as_often_as_they_are_held() -> None:
    more, less = (memory.reserve(_config(), _bundle(weights=count)).predict for count in (10**9, 0))
    assert more - less == memory.WEIGHT_COPIES * 10**9


def test_features_are_in_the_memory_of_a_gpu() -> None:
    wide, narrow = (memory.reserve(_config(**{"predict.gpus": 1}), _bundle(width=w)).predict for w in (1, 0.1))
    assert wide == narrow


def test_who_knows_better_says_so() -> None:
    assert memory.reserve(_config(**{"predict.memory": 123}), _bundle()).predict == 123


def test_every_backbone_has_its_largest_features() -> None:
    assert memory.CHANNELS_PER_PIXEL.keys() == set(Architecture.model_fields["backbone"].annotation.__args__)


def test_what_to_do_about_missing_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_alive", lambda: [{"CPU": 8.0, "memory": 11e9}])
    needed = Memory(prepare=10**9, predict=3 * 10**9, commit=10**8)
    memory.require_memory(needed, 3, _config().predict)
    with pytest.raises(ResourceError, match=r"^4 prediction actors with 3.0 GB .* room for 3: take fewer actors,"):
        memory.require_memory(needed, 4, _config().predict)


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
        memory.require_memory(NEEDED, actors, _config().predict)
        return
    with pytest.raises(ResourceError, match=r"leave no 1.0 GB of memory on one node|do not fit"):
        memory.require_memory(NEEDED, actors, _config().predict)


def test_nobody_chooses_more_actors_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = {"CPU": 2.0, "memory": 3e9}, {"CPU": 16.0, "memory": 10e9, "GPU": 1.0}
    monkeypatch.setattr(cluster, "_alive", lambda: [small, large])
    assert count_actors(_config().predict, NEEDED) == 1, "one for each node that holds one"
    assert count_actors(_config(**{"predict.gpus": 0.1}).predict, NEEDED) == 2, "not ten"
    assert count_actors(_config(**{"predict.actors": 7}).predict, NEEDED) == 7, "who asks is refused, if need be"


@pytest.mark.keras
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_network_takes_no_more_than_is_reserved_for_it_and_not_much_less(tiny_bundle: Path) -> None:
    """Without the room for a chunk's pixels, which it has not got here."""
    seen, room = (ask(str(tiny_bundle), 2**20) for ask in (predict_memory.measure, predict_memory.reserved))
    assert room / 2 < seen < room, f"{seen // MIB} of {room // MIB} MiB"
