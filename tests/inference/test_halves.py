"""Convolutions in two halves: the same numbers, on the layers that gain, where the CPU is one that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.bundle import load_bundle
from fcn_ray.errors import BundleError
from fcn_ray.inference import halves, network, precision
from fcn_ray.inference.halves import in_halves
from fcn_ray.models.layers import GroupedConv2D

pytestmark = pytest.mark.keras

AVX2, AVX512 = "flags\t\t: fpu avx2\n", "flags\t\t: fpu avx2 avx512f\n"


def _layer(kind: type[keras.layers.Conv2D] = keras.layers.Conv2D, **changes: Any) -> keras.Model:
    inputs = keras.Input((None, None, 4))
    settings: dict[str, Any] = {"filters": 6, "kernel_size": 3, "padding": "same", "activation": "relu"}
    return keras.Model(inputs, kind(**settings | changes)(inputs))


def _floats(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).normal(size=(1, height, width, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kernel_size": 7},
        {"kernel_size": (3, 5)},
        {"dilation_rate": 2},
        {"padding": "valid"},
        {"padding": "valid", "kernel_size": (4, 2)},
        {"padding": "valid", "dilation_rate": 2},
    ],
)
@pytest.mark.parametrize(("height", "width"), [(7, 9), (8, 9), (12, 7), (31, 20)])
def test_the_numbers_are_those_of_the_whole(changes: dict[str, Any], height: int, width: int) -> None:
    model, x = _layer(**changes), _floats(height, width)
    whole = np.asarray(model(x))
    with in_halves(model):
        assert "call" in vars(model.layers[1])
        halved = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 4))])(x)
    assert halved.shape == whole.shape
    assert np.allclose(halved, whole, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 1)])
def test_an_image_of_a_row(height: int, width: int) -> None:
    model, x = _layer(), _floats(height, width)
    with in_halves(model):
        halved = np.asarray(model(x))
    assert np.allclose(halved, model(x), atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        _layer(kernel_size=1),
        _layer(strides=2),
        _layer(kernel_size=2),
        _layer(dtype="mixed_bfloat16"),
        _layer(GroupedConv2D, groups=2),
    ],
    ids=["1x1", "strided", "even", "bfloat16", "grouped"],
)
def test_layers_that_gain_nothing_are_left_alone(model: keras.Model) -> None:
    with in_halves(model):
        assert not any("call" in vars(layer) for layer in model.layers)


def test_afterwards_every_layer_is_as_it_was() -> None:
    model = _layer()
    with pytest.raises(RuntimeError, match="in the middle"), in_halves(model):
        raise RuntimeError("in the middle")
    assert "call" not in vars(model.layers[1])


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def test_which_cpus_are_slow_with_one_image(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    for text, slow in ((AVX2, True), (AVX512, False), ("flags\t\t: fpu sse4_2\n", False), ("Features\t: fp\n", False)):
        cpu.write_text(text)
        assert halves.lacks_fast_single() is slow
    cpu.write_text(AVX2)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert not halves.lacks_fast_single(), "its convolutions are not those of oneDNN"


def test_one_image_goes_in_halves_where_that_is_faster(
    cpu: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same masks as on a CPU that does not need it."""
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    rng = np.random.default_rng(0)
    images, sizes = rng.integers(0, 255, (2, 64, 96, 3), np.uint8), np.array([[60, 90], [64, 96]], np.int32)
    cores = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    found: dict[str, list[np.ndarray]] = {}
    halved = 0
    plain = halves.in_halves

    def count(model: keras.Model) -> Any:
        nonlocal halved
        halved += 1
        return plain(model)

    monkeypatch.setattr(halves, "in_halves", count)
    for text in (AVX2, AVX512):
        cpu.write_text(text)
        predict = network.compile_network(load_bundle(str(tiny_bundle)), 0, "float32").predict
        one, many = predict(images[:1], sizes[:1], cores[:1]), predict(images, sizes, cores)
        assert np.array_equal(one[0][0, :60, :90], many[0][0, :60, :90])
        assert np.array_equal(one[1][0], many[1][0])
        assert halved == 1, "the CPU with AVX2 alone"
        found[text] = [np.asarray(part) for part in (*one, *many)]
    for mine, theirs in zip(found[AVX2], found[AVX512], strict=True):
        assert np.allclose(mine, theirs, atol=1e-3)


def test_both_graphs_are_asked_before_the_first_image(
    cpu: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of single images computes no numbers here: only where it is taken that shows."""
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr(halves, "_halve", lambda layer: lambda inputs: np.nan * inputs[..., :1] * layer.kernel[0, 0, 0])
    bundle = load_bundle(str(tiny_bundle))
    cpu.write_text(AVX512)
    network.compile_network(bundle, 0, "float32")
    cpu.write_text(AVX2)
    with pytest.raises(BundleError, match="does not compute what"):
        network.compile_network(bundle, 0, "float32")


def test_the_graph_of_batches_is_asked_too(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = network._compile_tensorflow

    def spoil_batches(*given: Any) -> Any:
        predict = compiled(*given)

        def spoilt(images: np.ndarray, *boxes: np.ndarray) -> Any:
            masks, pixels, confidence = predict(images, *boxes)
            return masks, pixels, confidence / len(images)

        return spoilt

    monkeypatch.setattr(network, "_compile_tensorflow", spoil_batches)
    with pytest.raises(BundleError, match="does not compute what"):
        network.compile_network(load_bundle(str(tiny_bundle)), 0, "float32")
