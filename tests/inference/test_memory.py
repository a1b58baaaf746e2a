"""What a job reserves: the formula beside what a network really takes, and what is said when it is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fcn_ray.bundle import Bundle
from fcn_ray.config import Architecture, ModelSpec, SegmentConfig
from fcn_ray.config_text import load_config
from fcn_ray.inference import memory
from fcn_ray.inference.lanes import PASS_PIXELS
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
    most = memory.MOST_BYTES
    none, half, whole, more = (
        memory.reserve(_config(), _bundle(weights=count)).predict for count in (0, most // 2, most, 10**9)
    )
    assert whole - none == 2 * (half - none) == (memory.WEIGHT_COPIES + memory.FROZEN_COPIES) * most
    assert more - whole == memory.WEIGHT_COPIES * (10**9 - most), "the others stay variables"


def test_nothing_is_frozen_on_a_gpu() -> None:
    some, none = (memory.reserve(_config(**{"predict.gpus": 1}), _bundle(weights=count)).predict for count in (100, 0))
    assert some - none == memory.WEIGHT_COPIES * 100


def test_features_are_in_the_memory_of_a_gpu() -> None:
    wide, narrow = (memory.reserve(_config(**{"predict.gpus": 1}), _bundle(width=w)).predict for w in (1, 0.1))
    assert wide == narrow


def test_who_knows_better_says_so() -> None:
    assert memory.reserve(_config(**{"predict.memory": 123}), _bundle()).predict == 123


def test_every_backbone_has_its_largest_features() -> None:
    assert memory.CHANNELS_PER_PIXEL.keys() == set(Architecture.model_fields["backbone"].annotation.__args__)


@pytest.mark.keras
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("images", [(1, 1248, 1248), (84, 192, 192)], ids=["one large", "two passes at once"])
def test_a_network_takes_no_more_than_is_reserved_for_it_and_not_much_less(
    tiny_bundle: Path, images: tuple[int, int, int]
) -> None:
    """Without the room for a chunk's pixels, which it has not got here."""
    pixels = 2 * PASS_PIXELS
    seen = predict_memory.measure(str(tiny_bundle), pixels, images)
    room = predict_memory.reserved(str(tiny_bundle), pixels)
    assert room / 2 < seen < room, f"{seen // MIB} of {room // MIB} MiB"
