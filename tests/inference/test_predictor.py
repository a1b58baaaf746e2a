from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fcn_ray.bundle import load_bundle, save_bundle
from fcn_ray.config import ModelSpec, PredictConfig, Preprocessing
from fcn_ray.errors import BundleError, ConfigError
from fcn_ray.images.codec import decode_label, encode_image
from fcn_ray.images.tiling import Tile
from fcn_ray.inference import network
from fcn_ray.inference import predictor as predictor_module
from fcn_ray.inference.lanes import Lanes
from fcn_ray.inference.predictor import Prediction, Predictor, describe
from fcn_ray.inference.stages import PIXELS
from fcn_ray.labels import LabelSet
from fcn_ray.tables import schema
from tests.networks import tiny_model, tiny_spec

pytestmark = pytest.mark.keras


def _decoded(images: list[np.ndarray | None], encoded: Collection[int] = ()) -> pa.Table:
    """Those of the rows `encoded` had no room in the chunk."""
    return pa.table(
        {
            "row": list(range(len(images))),
            schema.ENCODED: pa.array(
                [encode_image(i, "PNG") if i is not None and row in encoded else None for row, i in enumerate(images)],
                pa.large_binary(),
            ),
            PIXELS: pa.array(
                [None if i is None or row in encoded else i.tobytes() for row, i in enumerate(images)],
                pa.large_binary(),
            ),
            schema.HEIGHT: pa.array([i if i is None else i.shape[0] for i in images], pa.int32()),
            schema.WIDTH: pa.array([i if i is None else i.shape[1] for i in images], pa.int32()),
            schema.STATUS: ["null" if i is None else "ok" for i in images],
            schema.ERROR: pa.array(["none" if i is None else None for i in images], pa.string()),
        }
    )


@pytest.fixture(scope="module")
def images() -> list[np.ndarray | None]:
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (33, 64), (7, 9), (40, 50), (64, 64), (1, 1)]
    drawn: list[np.ndarray | None] = [rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes]
    return [*drawn[:3], None, *drawn[3:]]


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path) -> Predictor:
    return make_predictor(tiny_bundle, batch_pixels=3 * 64 * 64)


def make_predictor(bundle: Path, batch_pixels: int = 1_600_000, tile_pixels: int = 2_097_152) -> Predictor:
    settings = PredictConfig().model_copy(update={"batch_pixels": batch_pixels, "tile_pixels": tile_pixels})
    return Predictor(load_bundle(str(bundle)), settings)


def test_every_image_has_the_mask_that_it_has_alone(predictor: Predictor, images: list[np.ndarray | None]) -> None:
    together = predictor(_decoded(images))
    assert together["row"].to_pylist() == list(range(7))
    assert PIXELS not in together.column_names
    for row, image in enumerate(images):
        alone = predictor(_decoded([image]))
        for name in (schema.MASK, schema.CLASS_PIXELS, schema.STATUS):
            assert together[name][row].as_py() == alone[name][0].as_py()


def test_counts_and_confidences_belong_to_the_mask(predictor: Predictor, images: list[np.ndarray | None]) -> None:
    table = predictor(_decoded(images))
    for row, image in zip(table.to_pylist(), images, strict=True):
        if image is None:
            assert row[schema.MASK] is row[schema.CLASS_PIXELS] is row[schema.MEAN_CONFIDENCE] is None
            continue
        mask = np.frombuffer(row[schema.MASK], np.uint8)
        assert mask.size == image.shape[0] * image.shape[1]
        assert row[schema.CLASS_PIXELS] == np.bincount(mask, minlength=3).tolist()
        assert 1 / 3 <= row[schema.MIN_CLASS_CONFIDENCE] <= row[schema.MEAN_CONFIDENCE] + 1e-6 <= 1 + 2e-6


def test_an_image_that_fails_takes_no_other_with_it(predictor: Predictor, images: list[np.ndarray | None]) -> None:
    good, bad = images[0], np.full((40, 50, 3), 13, np.uint8)
    assert good is not None
    network = predictor._network

    def fails_on_thirteen(batch: np.ndarray, *boxes: np.ndarray) -> object:
        if (batch[:, 0, 0, 0] == 13).any():
            raise MemoryError("no room for thirteen")
        return network.predict(batch, *boxes)

    predictor._network = replace(network, predict=fails_on_thirteen)
    try:
        table = predictor(_decoded([good, bad, good]))
    finally:
        predictor._network = network
    assert table[schema.STATUS].to_pylist() == ["ok", "predict", "ok"]
    assert table[schema.ERROR].to_pylist() == [None, "MemoryError: no room for thirteen", None]
    assert table[schema.MASK][1].as_py() is None


def test_a_batch_that_does_not_fit_is_halved(tiny_bundle: Path) -> None:
    predictor, sizes = make_predictor(tiny_bundle), []
    images = list(np.random.default_rng(2).integers(0, 255, (7, 32, 32, 3), np.uint8))
    expected = predictor.predict(images)
    network = predictor._network

    def little_memory(batch: np.ndarray, *boxes: np.ndarray) -> object:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError("no room")
        return network.predict(batch, *boxes)

    predictor._network = replace(network, predict=little_memory)
    found = predictor.predict(images)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    for left, right in zip(found, expected, strict=True):
        assert isinstance(left, Prediction)
        assert isinstance(right, Prediction)
        assert (left.mask == right.mask).mean() >= 0.999


LITTLE_MEMORY = """
import logging, resource, sys
import numpy as np
from fcn_ray.bundle import load_bundle
from fcn_ray.config import PredictConfig
from fcn_ray.inference.predictor import Predictor, describe
logging.basicConfig(stream=sys.stdout)
settings = PredictConfig(threads=1, batch_pixels=10**8, tile_pixels=10**8)
predictor = Predictor(load_bundle(sys.argv[1]), settings)
small, large = np.zeros((600, 600, 3), np.uint8), np.zeros((4000, 4000, 3), np.uint8)
predictor.predict([small])
limit = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
for images in ([small, large, small], [small] * 40):
    found = predictor.predict(images)
    print("FOUND", [describe(outcome) if isinstance(outcome, Exception) else "mask" for outcome in found])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_that_is_really_gone_halves_batches_and_fails_single_images(tiny_bundle: Path) -> None:
    """300 MB for the network: an image of 16 megapixels does not fit, nor do 40 of 0.36 at once.

    Without oneDNN, which dies of it: then the actor does (test_poison.py). It dies too when the memory ends in one of
    the small allocations between two tensors, so these get a room of their own."""
    run, environment = (
        [sys.executable, "-c", LITTLE_MEMORY, str(tiny_bundle)],
        os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0", "MALLOC_ARENA_MAX": "1", "MALLOC_TOP_PAD_": str(64 << 20)},
    )
    result = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    found = [line.removeprefix("FOUND ") for line in result.stdout.splitlines() if line.startswith("FOUND ")]
    (left, large, right), batch = map(ast.literal_eval, found)
    assert (left, right, set(batch)) == ("mask", "mask", {"mask"})
    assert large.startswith("ResourceExhaustedError: OOM when allocating tensor with shape")
    assert "a batch of 40 images failed (ResourceExhaustedError: OOM when" in result.stdout


def test_an_image_without_room_in_its_chunk_gets_the_same_and_its_mask_is_encoded_at_once(
    predictor: Predictor, images: list[np.ndarray | None]
) -> None:
    together, apart = predictor(_decoded(images)), predictor(_decoded(images, encoded=[1, 3, 4]))
    assert not {PIXELS, schema.ENCODED} & set(apart.column_names)
    names = [schema.CLASS_PIXELS, schema.STATUS, schema.ERROR]
    assert together.select(names) == apart.select(names)
    encoded = [row for row in range(len(images)) if apart[schema.MASK_PNG][row].is_valid]
    assert encoded == [1, 4], "row 3 has no image"
    for row, image in enumerate(images):
        mask = together[schema.MASK][row].as_py()
        if row in encoded:
            assert apart[schema.MASK][row].as_py() is None
            assert decode_label(apart[schema.MASK_PNG][row].as_py()).tobytes() == mask
        else:
            assert apart[schema.MASK][row].as_py() == mask
        if image is not None:
            for name in (schema.MEAN_CONFIDENCE, schema.MIN_CLASS_CONFIDENCE):
                assert apart[name][row].as_py() == pytest.approx(together[name][row].as_py(), abs=1e-5)


def test_memory_that_is_gone_when_an_image_is_decoded_again_is_its_own_row(
    predictor: Predictor, images: list[np.ndarray | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(predictor_module, "decode_image", full)
    rows = predictor(_decoded(images, encoded=[1]))
    assert rows[schema.STATUS].to_pylist() == ["ok", "predict", "ok", "null", "ok", "ok", "ok"]
    assert rows[schema.ERROR][1].as_py() == "MemoryError: no room"


def test_another_bundle_than_planned_is_refused(tiny_bundle: Path) -> None:
    other = Predictor(replace(load_bundle(str(tiny_bundle)), weights_sha256="0000"), PredictConfig())
    with pytest.raises(BundleError, match=r"changed after the bundle was loaded: sha256 .*, not 0000"):
        other(_decoded([None]))


@pytest.mark.parametrize(("backend", "message"), [("torch", "on tensorflow or jax"), ("jax", "is not installed")])
def test_a_backend_that_is_not_there_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, backend: str, message: str
) -> None:
    """Not on the driver: what is installed there says nothing of the nodes."""
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr("fcn_ray.inference.network.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"KERAS_BACKEND is {backend}.*{message}"):
        make_predictor(tiny_bundle)(_decoded([None]))


def test_a_broken_device_is_no_fault_of_the_images(
    predictor: Predictor, images: list[np.ndarray | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: np.ndarray) -> object:
        raise RuntimeError("device lost")

    monkeypatch.setattr(predictor, "_network", replace(predictor._network, predict=broken))
    with pytest.raises(RuntimeError, match="device lost"):
        predictor(_decoded(images))


# --------------------------------------------------------------------------------------------------------- tiles


TILE_PIXELS = 640 * 640


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """A picture with structure of every size, so that tiles have something to disagree about."""
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 255, (26, 30, 3)).repeat(32, 0).repeat(32, 1)[:813, :937]
    return np.clip(coarse + rng.normal(scale=40, size=coarse.shape), 0, 255).astype(np.uint8)


def test_tiles_give_the_mask_of_the_whole_image(tiny_bundle: Path, large: np.ndarray) -> None:
    whole, tiled = make_predictor(tiny_bundle), make_predictor(tiny_bundle, tile_pixels=TILE_PIXELS)
    assert len(tiled._plan(*large.shape[:2])) > 3
    (expected,), (found,) = whole.predict([large]), tiled.predict([large])
    assert isinstance(expected, Prediction)
    assert isinstance(found, Prediction)
    assert (found.mask == expected.mask).mean() >= 0.9999  # the contract; float32 rounds by the size of the batch
    assert len(np.unique(expected.mask)) > 1
    assert found.class_pixels.tolist() == np.bincount(found.mask.ravel(), minlength=3).tolist()
    assert found.mean_confidence == pytest.approx(expected.mean_confidence, rel=1e-5)
    assert found.min_class_confidence == pytest.approx(expected.min_class_confidence, rel=1e-5)
    (again,) = make_predictor(tiny_bundle, batch_pixels=2 * TILE_PIXELS, tile_pixels=TILE_PIXELS).predict([large])
    assert isinstance(again, Prediction)
    assert np.array_equal(again.mask, found.mask), "equal tiles give equal masks, however they are batched"


def test_tiles_are_taken_in_one_order_whichever_is_done_first(
    tiny_bundle: Path, large: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = make_predictor(tiny_bundle, batch_pixels=8 * TILE_PIXELS, tile_pixels=TILE_PIXELS)
    predict, seen, taken = predictor._network.predict, list[int](), list[Tile]()
    monkeypatch.setattr(Prediction, "add", lambda self, tile, *_: taken.append(tile))

    def dawdle(batch: np.ndarray, *boxes: np.ndarray) -> object:
        seen.append(threading.get_ident())
        time.sleep(0.2 * (len(seen) == 1))
        return predict(batch, *boxes)

    _run_side_by_side(predictor, dawdle, 4 * TILE_PIXELS).predict([large])
    assert taken == predictor._plan(*large.shape[:2])
    assert len(set(seen)) > 1, "tiles go side by side"


def _run_side_by_side(predictor: Predictor, predict: Any, pixels: int) -> Predictor:
    """Four passes at once, of an image or tile each."""
    predictor._network = replace(predictor._network, predict=predict)
    predictor._lanes = Lanes(4, pixels)
    predictor._lanes.pass_pixels = 1
    return predictor


@pytest.mark.parametrize("broken", [False, True])
def test_what_fails_beside_others_has_a_try_alone(tiny_bundle: Path, broken: bool) -> None:
    """Memory that several passes take together is no fault of an image; one of which it is fails then too."""
    predictor, lock, running, most = make_predictor(tiny_bundle), threading.Lock(), list[int](), list[int]()
    predict, images = predictor._network.predict, list(np.full((12, 40, 50, 3), 7, np.uint8))
    images[3] = np.full((40, 50, 3), 13 if broken else 7, np.uint8)

    def little_memory(batch: np.ndarray, *boxes: np.ndarray) -> object:
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.02)
        with lock:
            together = len(running)
            running.pop()
        if together > 1 or (batch[:, 0, 0, 0] == 13).any():
            raise MemoryError("no room")
        return predict(batch, *boxes)

    found = _run_side_by_side(predictor, little_memory, 1_600_000).predict(images)
    assert [type(outcome) for outcome in found] == [
        MemoryError if broken and row == 3 else Prediction for row in range(12)
    ]
    assert max(most) > 1, "they were beside each other"


def test_a_cpu_has_a_lane_for_each_thread(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "count_cpus", lambda: 7)
    monkeypatch.setattr(network, "_has_gpu", lambda: False)
    bundle = load_bundle(str(tiny_bundle))
    assert network.compile_network(bundle, 0, "float32").lanes == 7
    monkeypatch.setattr(network, "_set_up_tensorflow", lambda threads: None)  # it can be told once
    assert network.compile_network(bundle, 3, "float32").lanes == 3
    monkeypatch.setattr(network, "_has_gpu", lambda: True)
    assert network.compile_network(bundle, 3, "float32").lanes == 1


def test_too_small_a_halo_would_show(tiny_bundle: Path, large: np.ndarray) -> None:
    predictor = make_predictor(tiny_bundle, tile_pixels=TILE_PIXELS)
    (exact,) = predictor.predict([large])
    predictor._network = replace(predictor._network, halo=32)
    (close,) = predictor.predict([large])
    assert isinstance(exact, Prediction)
    assert isinstance(close, Prediction)
    assert not np.array_equal(close.mask, exact.mask)


def test_a_batch_of_eight_and_one_of_one_agree(tiny_bundle: Path) -> None:
    images = list(np.random.default_rng(2).integers(0, 255, (8, 96, 128, 3), np.uint8))
    together = make_predictor(tiny_bundle, batch_pixels=8 * 96 * 128).predict(images)
    alone = make_predictor(tiny_bundle, batch_pixels=1).predict(images)
    for left, right in zip(together, alone, strict=True):
        assert isinstance(left, Prediction)
        assert isinstance(right, Prediction)
        assert (left.mask == right.mask).mean() >= 0.9999


def save_random(folder: Path, spec: ModelSpec) -> Path:
    labels = LabelSet.from_names([f"class {index}" for index in range(spec.num_classes)])
    save_bundle(str(folder), tiny_model(spec), spec, labels, Preprocessing(), {})
    return folder


def test_a_network_without_tiles_says_so_in_the_row(tmp_path: Path, large: np.ndarray) -> None:
    bundle = save_random(tmp_path / "bundle", tiny_spec(backbone="mobilenetv3_small"))
    predictor = make_predictor(bundle, tile_pixels=TILE_PIXELS)
    table = predictor(_decoded([large[:40, :50], large]))
    assert table[schema.STATUS].to_pylist() == ["ok", "predict"]
    error = table[schema.ERROR][1].as_py()
    assert "937x813 pixels is larger than predict.tile_pixels 409600" in error
    assert "statistics of the whole image" in error


def test_paper_geometry_batches_equal_sizes_only(tmp_path: Path) -> None:
    """Zeros beside an image would be part of its pad of 100, and longer than it."""
    predictor = make_predictor(save_random(tmp_path / "bundle", tiny_spec(geometry="paper")))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), np.uint8) for size in ((40, 50), (41, 50), (40, 50))]
    together = predictor.predict(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = predictor.predict([image])
        assert isinstance(found, Prediction)
        assert isinstance(alone, Prediction)
        assert np.array_equal(found.mask, alone.mask)


@pytest.mark.slow
def test_a_large_image_is_predicted_in_the_memory_of_a_tile(tiny_bundle: Path) -> None:
    """4096 x 4096 in a process of its own (8192 x 8192: tests/benchmarks/large_image.py).

    Logits of the whole would be 4096 * 4096 * 3 * 4 bytes, 201 MB, eight times over while they are upsampled.
    """
    code = (
        "import re, sys, numpy as np\n"
        "from tests.inference.test_predictor import make_predictor\n"
        "from pathlib import Path\n"
        "image = np.random.default_rng(0).integers(0, 255, (4096, 4096, 3), np.uint8)\n"
        "found, = make_predictor(Path(sys.argv[1])).predict([image])\n"
        "assert found.class_pixels.sum() == 4096 ** 2\n"
        # Not getrusage: that remembers the process that started this one.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1536, "MiB"


@pytest.mark.parametrize(("sharers", "threads", "taken"), [(1, 0, 0), (2, 0, 4), (3, 0, 2), (99, 0, 1), (2, 5, 5)])
def test_actors_of_one_node_share_its_cores(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, sharers: int, threads: int, taken: int
) -> None:
    found: list[int] = []
    monkeypatch.setattr(network, "count_cpus", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 8)

    def compile_network(_: object, threads: int, __: str) -> SimpleNamespace:
        found.append(threads)
        return SimpleNamespace(lanes=1)

    monkeypatch.setattr(predictor_module, "compile_network", compile_network)
    Predictor(load_bundle(str(tiny_bundle)), PredictConfig(threads=threads), sharers=sharers)
    assert found == [taken]


def test_one_actor_of_a_small_container_takes_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(network, "count_cpus", lambda: 4)
    assert [network.share_cores(sharers) for sharers in (1, 2)] == [4, 2]


@pytest.mark.parametrize("gpus", [[], ["a GPU"]])
def test_the_first_of_the_largest_wins_and_no_number_is_none_of_them(
    monkeypatch: pytest.MonkeyPatch, gpus: list[str]
) -> None:
    """Logits of three values tie in most pixels; what is beside the image may be no number, and stays a class."""
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    logits = np.random.default_rng(0).integers(0, 3, (2, 40, 50, 5)).astype(np.float32)
    logits[1, 0], logits[1, 1, :, 3] = np.nan, np.nan
    classes, largest = map(np.asarray, network._top_tensorflow(tf.constant(logits)))
    assert np.array_equal(classes[0], logits[0].argmax(axis=-1))
    assert np.array_equal(largest[0, ..., 0], logits[0].max(axis=-1))
    assert largest.shape == (2, 40, 50, 1)
    assert (classes.min(), classes.max()) == (0, 4)


TRACED = 'Graph execution error:\n\nDetected at node a defined at (most recent call last):\n  File "x.py", line 1\n\n'


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no room", "no room"),
        (f"{TRACED}OOM when allocating tensor [Op:f]", "OOM when allocating tensor [Op:f]"),
        (
            f"{TRACED}2 root error(s) found.\n  (0) RESOURCE_EXHAUSTED: OOM when\n\t [[a]]\nHint\n\n"
            "  (1) RESOURCE_EXHAUSTED: OOM\n\n0 successful operations.\n0 derived errors ignored. [Op:f]",
            "RESOURCE_EXHAUSTED: OOM when",
        ),
    ],
)
def test_of_a_long_message_the_cause_is_told(said: str, told: str) -> None:
    assert describe(MemoryError(said)) == f"MemoryError: {told}"
