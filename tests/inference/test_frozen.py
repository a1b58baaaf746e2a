"""Weights as constants of a graph: the same numbers, and what is too large stays a variable."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.bundle import load_bundle
from fcn_ray.errors import BundleError
from fcn_ray.inference import frozen, network
from fcn_ray.inference.frozen import freeze
from fcn_ray.models.probe import ask

pytestmark = pytest.mark.keras

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 9, 3)).astype(np.float32)


def _model() -> keras.Model:
    """A kernel of 2,304 bytes, normalisation, and a kernel of 1,728."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    large = keras.layers.Conv2D(48, 2, padding="same", use_bias=False)(inputs)
    small = keras.layers.Conv2D(1, 3, padding="same", use_bias=False)(keras.layers.BatchNormalization()(large))
    return keras.Model(inputs, small)


def _trace(model: keras.Model) -> Any:
    signature = [tf.TensorSpec((None, None, None, 3))]
    function = freeze(lambda images: model(images, training=False), model)
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()


def test_a_frozen_network_gives_the_same_numbers_whatever_becomes_of_its_weights() -> None:
    model = _model()
    expected, graph = np.asarray(model(IMAGES)), _trace(model)
    assert graph.captured_inputs == []
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    assert np.allclose(graph(IMAGES), expected, atol=1e-6)
    assert not np.asarray(model(IMAGES)).any()


def test_large_weights_stay_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "MOST_BYTES", 4 * 4 * 48 + 1728)
    model = _model()
    graph = _trace(model)
    assert [variable.shape for variable in graph.variables] == [(2, 2, 3, 48)]
    assert np.allclose(graph(IMAGES), model(IMAGES), atol=1e-6)


def test_large_weights_stay_when_their_model_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "MOST_BYTES", 0)
    model = _model()
    expected, graph, gone = np.asarray(model(IMAGES)), _trace(model), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert np.allclose(graph(IMAGES), expected, atol=1e-6)


def test_labelling_freezes_on_cpus(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_has_gpu", lambda: False)
    models: list[keras.Model] = []
    monkeypatch.setattr(frozen, "freeze", lambda function, model: models.append(model) or freeze(function, model))
    predict = network.compile_network(load_bundle(str(tiny_bundle)), 0, "float32").predict
    (model,), before = models, ask(predict)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    assert ask(predict) == before
    gone = weakref.ref(model)
    models.clear()
    del model
    gc.collect()
    assert gone() is None, "its weights would be in memory twice"
    assert ask(predict) == before


def test_weights_stay_variables_on_a_gpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_has_gpu", lambda: True)
    assert network.compile_network(load_bundle(str(tiny_bundle)), 0, "float32").predict.captured_inputs


def test_one_image_and_several_are_given_the_same(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    images, sizes = rng.integers(0, 255, (2, 64, 96, 3), np.uint8), np.array([[60, 90], [64, 96]], np.int32)
    cores = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    predict = network.compile_network(load_bundle(str(tiny_bundle)), 0, "float32").predict
    one, many = predict(images[:1], sizes[:1], cores[:1]), predict(images, sizes, cores)
    assert np.array_equal(one[0][0, :60, :90], many[0][0, :60, :90])
    assert np.array_equal(one[1][0], many[1][0])
    assert np.allclose(one[2][0], many[2][0], atol=1e-3)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_single_image_and_a_batch_are_asked_before_the_first_image(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    """oneDNN has other convolutions for the one than for the other: here those of one of them compute wrong."""
    compiled = network._compile_tensorflow

    def spoil(*given: Any) -> Any:
        predict = compiled(*given)

        def spoilt(images: np.ndarray, *boxes: np.ndarray) -> Any:
            masks, pixels, confidence = predict(images, *boxes)
            return masks, pixels, confidence / (2 if len(images) == copies else 1)

        return spoilt

    monkeypatch.setattr(network, "_compile_tensorflow", spoil)
    with pytest.raises(BundleError, match="does not compute what"):
        network.compile_network(load_bundle(str(tiny_bundle)), 0, "float32")
