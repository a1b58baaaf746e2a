from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.models.layers import CropLike, PadToStride, Scale, SeededDropout, Upsample

pytestmark = pytest.mark.keras

ANY_SIZE = [tf.TensorSpec((None, None, None, 3), tf.float32)]


def bilinear_deconvolution(x: np.ndarray, factor: int) -> np.ndarray:
    """The authors' upsampling: kernel 2 f, stride f, weights of surgery.upsample_filt; cropped to f times the size."""
    ramp = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    height, width = x.shape
    edged = np.pad(x, 1, mode="edge")
    out = np.zeros(((height + 3) * factor, (width + 3) * factor))
    for i, j in np.ndindex(edged.shape):
        out[i * factor : (i + 2) * factor, j * factor : (j + 2) * factor] += edged[i, j] * np.outer(ramp, ramp)
    start = factor + factor // 2
    return out[start : start + height * factor, start : start + width * factor]


def test_upsampling_places_half_pixel_centres() -> None:
    cells = np.float32([[0, 4], [8, 12]])[None, ..., None]
    rows = keras.ops.convert_to_numpy(Upsample(2)(cells))[0, ..., 0]
    assert rows.tolist() == [[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]]


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)])
def test_upsampling_is_the_fixed_bilinear_deconvolution_and_the_bilinear_resize(
    factor: int, size: tuple[int, int]
) -> None:
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    upsample = Upsample(factor)
    found = tf.function(lambda value: upsample(value), input_signature=ANY_SIZE)(x).numpy()
    expected = np.stack([[bilinear_deconvolution(x[n, ..., c], factor) for c in range(3)] for n in range(2)])
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(found, tf.image.resize(x, (size[0] * factor, size[1] * factor)), atol=1e-5)


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
    "layer", [PadToStride(16), Upsample(4), CropLike(), Scale(), SeededDropout(0.5, 7)], ids=lambda v: type(v).__name__
)
def test_layers_serialise(layer: keras.layers.Layer) -> None:
    config = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(config).get_config() == layer.get_config()
