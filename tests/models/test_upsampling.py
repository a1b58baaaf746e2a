from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.models.upsampling import Deconvolution, Upsample, bilinear_kernel, kernel_size

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


def scores(*size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def traced(layer: keras.layers.Layer, x: np.ndarray) -> np.ndarray:
    """The layer's output, compiled for every size."""
    return tf.function(lambda value: layer(value), input_signature=ANY_SIZE)(x).numpy()


def test_the_kernel_is_that_of_the_release() -> None:
    assert bilinear_kernel(4)[0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    assert bilinear_kernel(3).tolist() == [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]
    assert [bilinear_kernel(size).shape for size in (63, 64)] == [(63, 63), (64, 64)]
    # Every output cell is a mean: what falls on it sums to one.
    assert np.allclose([bilinear_kernel(64)[i::32, 5::32].sum() for i in range(32)], 1)


@pytest.mark.parametrize(("centre", "size"), [(15.5, 64), (31, 63), (0, 63)])
def test_the_kernel_puts_cells_on_whole_output_cells(centre: float, size: int) -> None:
    assert kernel_size(32, centre) == size


@pytest.mark.parametrize(
    ("factor", "centre"), [(2, 0), (2, 0.5), (2, 1), (8, 0), (8, 3.5), (8, 7), (32, 15), (32, 15.5)]
)
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_resize_fixed_and_new_learned_deconvolution_are_one(factor: int, centre: float, size: tuple[int, int]) -> None:
    """The identity of fcn.md 2.3: the edge repeated once makes the deconvolution the resize, border and all."""
    x, kernel = scores(*size), kernel_size(factor, centre)
    resized = traced(Upsample(factor, centre), x)
    assert resized.shape == (2, factor * size[0], factor * size[1], 3)
    for learned in (False, True):
        layer = Deconvolution(factor, kernel, centre, learned)
        np.testing.assert_allclose(traced(layer, x), resized, atol=1e-5)
        assert layer.compute_output_shape(x.shape) == resized.shape
        assert [tuple(weight.shape) for weight in layer.weights] == [(kernel, kernel, 3, 3)] * learned


@pytest.mark.parametrize(("factor", "kernel"), [(2, 4), (8, 16), (16, 32), (32, 63), (32, 64)])
def test_without_a_centre_it_is_the_deconvolution_of_the_release(factor: int, kernel: int) -> None:
    x = scores(2, 3)
    weights = bilinear_kernel(kernel).astype(np.float64)
    expected = np.zeros((2, factor + kernel, 2 * factor + kernel, 3))
    for i, j in np.ndindex(2, 3):
        rows, columns = slice(i * factor, i * factor + kernel), slice(j * factor, j * factor + kernel)
        expected[:, rows, columns] += x[:, i, None, j, None] * weights[None, :, :, None]
    for learned in (False, True):
        layer = Deconvolution(factor, kernel, learned=learned)
        np.testing.assert_allclose(traced(layer, x), expected, atol=1e-5)
        assert layer.compute_output_shape(x.shape) == expected.shape


def test_only_the_learned_kernel_learns_and_it_may_mix_classes() -> None:
    fixed, learned = Deconvolution(2, 4, 0.5), Deconvolution(2, 4, 0.5, learned=True)
    x = scores(2, 2)
    fixed(x), learned(x)
    assert (fixed.trainable_weights, len(learned.trainable_weights)) == ([], 1)
    kernel = learned.get_weights()[0]
    kernel[:, :, 1, 0] = 1  # out, in
    learned.set_weights([kernel])
    only_first = np.float32([1, 0, 0]) * x
    assert np.abs(learned(only_first)[..., 1]).max() > 0


@pytest.mark.parametrize("centre", [-0.5, 2, 0.25])
def test_a_centre_outside_its_cell_is_refused(centre: float) -> None:
    for make in (lambda: Upsample(2, centre), lambda: Deconvolution(2, 4, centre)):
        with pytest.raises(ValueError, match=f"centre {float(centre)} of factor 2"):
            make()


def test_a_kernel_that_falls_between_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel_size 4 puts no cell on 1\.0: use 3"):
        Deconvolution(2, 4, 1)
