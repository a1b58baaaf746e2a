from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.models.layers import (
    CeilMaxPooling,
    CropLike,
    GroupedConv2D,
    LocalResponseNormalization,
    PadToStride,
    Scale,
    SeededDropout,
)
from fcn_ray.models.upsampling import Deconvolution, Upsample

pytestmark = pytest.mark.keras

ANY_SIZE = [tf.TensorSpec((None, None, None, 3), tf.float32)]


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (32, 32)), ((32, 33), (32, 64)), ((64, 95), (64, 96))])
def test_padding_adds_zeros_below_and_to_the_right(size: tuple[int, int], padded: tuple[int, int]) -> None:
    pad = PadToStride(32)
    out = tf.function(lambda value: pad(value), input_signature=ANY_SIZE)(tf.ones((1, *size, 3))).numpy()
    assert out.shape == (1, *padded, 3)
    assert out[:, : size[0], : size[1]].all()
    assert out.sum() == size[0] * size[1] * 3
    assert pad.compute_output_shape((1, *size, 3)) == (1, *padded, 3)


def test_cropping_keeps_the_top_left() -> None:
    scores = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    crop = CropLike()
    assert np.asarray(crop([scores, np.zeros((1, 2, 3, 3))]))[0, ..., 0].tolist() == [[0, 1, 2], [4, 5, 6]]
    assert crop.compute_output_shape([(1, 4, 4, 7), (1, 2, None, 3)]) == (1, 2, None, 7)
    assert np.asarray(CropLike(1)([scores, np.zeros((1, 2, 3, 3))]))[0, ..., 0].tolist() == [[5, 6, 7], [9, 10, 11]]


@pytest.mark.parametrize(("size", "pool", "cells"), [(7, 3, 3), (8, 3, 4), (2, 3, 1), (5, 2, 3), (6, 2, 3)])
def test_the_last_pool_hangs_over_the_edge_as_in_caffe(size: int, pool: int, cells: int) -> None:
    x = np.arange(1, size + 1, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, size, 1), np.float32)
    layer = CeilMaxPooling(pool, 2)
    found = tf.function(lambda value: layer(value), input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32)])(
        x
    )
    expected = [min(2 * cell + pool, size) for cell in range(cells)]
    assert found[0, :, 0, 0].numpy().tolist() == expected
    assert found.shape == layer.compute_output_shape((1, size, size, 1))


def test_local_response_normalization_by_hand() -> None:
    x = np.float32([[[[1, 2, 3, 4, 5, 6]]]]) * 100
    squares = np.square(x[0, 0, 0])
    sums = [squares[max(c - 2, 0) : c + 3].sum() for c in range(6)]
    expected = x[0, 0, 0] / (1 + 1e-4 / 5 * np.array(sums)) ** 0.75
    np.testing.assert_allclose(LocalResponseNormalization()(x)[0, 0, 0], expected, rtol=1e-5)


def test_groups_see_their_own_channels() -> None:
    layer = GroupedConv2D(4, 1, groups=2, use_bias=False)
    x = np.float32([[[[1, 10, 100, 1000]]]])
    layer(x)
    kernel = np.zeros((1, 1, 2, 4), np.float32)
    kernel[0, 0] = [[1, 0, 1, 0], [0, 1, 1, 1]]  # Caffe's order: in / groups, out
    layer.set_weights([kernel])
    assert np.asarray(layer(x))[0, 0, 0].tolist() == [1, 10, 1100, 1000]


def test_scale_is_stored_but_not_trained() -> None:
    scale = Scale(name="scale")
    assert np.asarray(scale(np.float32([[3]]))).tolist() == [[3]]
    scale.set_weights([np.float32(0.5)])
    assert np.asarray(scale(np.float32([[3]]))).tolist() == [[1.5]]
    assert [weight.path for weight in scale.weights] == ["scale/factor"]
    assert scale.trainable_weights == []


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    drop, x = SeededDropout(0.25, seed=3), np.ones((100, 100), np.float32)
    assert np.array_equal(drop(x), x)
    found = np.asarray(drop(x, training=True))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
    assert np.mean(found == 0) == pytest.approx(0.25, abs=0.02)


def test_dropout_has_a_state_of_stable_name() -> None:
    for _ in range(2):  # keras.layers.Dropout would count up
        drop = SeededDropout(0.5, seed=3, name="drop_fc6")
        assert [variable.path for variable in drop.variables] == ["drop_fc6/seed_generator_state"]
        assert drop.weights == []


def test_dropout_draws_anew_every_step_under_a_strategy() -> None:
    strategy = tf.distribute.MirroredStrategy(["cpu:0"])
    with strategy.scope():
        drop = SeededDropout(0.5, seed=3)

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        return strategy.run(lambda value: drop(value, training=True), args=(x,))

    first, second = (step(tf.ones((8, 8))).numpy() for _ in range(2))
    assert not np.array_equal(first, second)
    again = SeededDropout(0.5, seed=3)
    assert np.array_equal(first, again(np.ones((8, 8), np.float32), training=True))


@pytest.mark.parametrize(
    "layer",
    [
        PadToStride(16),
        Upsample(4, 1.0),
        Deconvolution(2, 4, 0.5, learned=True),
        Deconvolution(2, 4),
        CropLike(3),
        CeilMaxPooling(3, 2),
        LocalResponseNormalization(),
        GroupedConv2D(4, 3, groups=2),
        Scale(),
        SeededDropout(0.5, 7),
    ],
    ids=lambda v: type(v).__name__,
)
def test_layers_serialise(layer: keras.layers.Layer) -> None:
    config = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(config).get_config() == layer.get_config()
