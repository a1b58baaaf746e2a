from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.config import CAFFE_PREPROCESSING, Preprocessing
from fcn_ray.models.prediction import PredictFn, _tally, build_mask_fn, build_predict_fn, tally_arrays
from fcn_ray.models.preprocessing import normalise
from tests.networks import tiny_model

pytestmark = pytest.mark.keras

PLAIN = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))


def compiled(model: keras.Model, preprocessing: Preprocessing) -> PredictFn:
    signature = [
        tf.TensorSpec((None, None, None, 3), tf.uint8),
        tf.TensorSpec((None, 2), tf.int32),
        tf.TensorSpec((None, 4), tf.int32),
    ]
    return tf.function(build_predict_fn(model, preprocessing), input_signature=signature, autograph=False)


def cores(sizes: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Of whole images."""
    return [(0, 0, height, width) for height, width in sizes]


@pytest.fixture(scope="module")
def colours_as_logits() -> keras.Model:
    """Three classes; the logits of a pixel are its red, green and blue."""
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, keras.layers.Identity()(inputs))


def test_counts_and_confidences_by_hand(colours_as_logits: keras.Model) -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, 0, :3] = [[2, 0, 0], [0, 3, 0], [0, 9, 0]]
    images[1, :2, 0] = [[0, 0, 1], [0, 0, 0]]
    sizes = [(1, 3), (2, 1)]
    masks, pixels, confidence = compiled(colours_as_logits, PLAIN)(images, sizes, cores(sizes))

    def top(logit: float) -> float:
        return np.exp(logit) / (np.exp(logit) + 2)

    assert (masks.dtype, pixels.dtype, confidence.dtype) == (tf.uint8, tf.int32, tf.float32)
    assert masks[0, 0, :3].numpy().tolist() == [0, 1, 1]
    assert masks[1, :2, 0].numpy().tolist() == [2, 0]
    assert pixels.numpy().tolist() == [[1, 2, 0], [1, 0, 1]]
    np.testing.assert_allclose(confidence, [[top(2), top(3) + top(9), 0], [top(0), 0, top(1)]], rtol=1e-6)


def test_only_the_core_is_counted(colours_as_logits: keras.Model) -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 2:5, 3:9, 1] = 7
    masks, pixels, confidence = compiled(colours_as_logits, PLAIN)(images, [(32, 32)], [(4, 8, 6, 32)])
    assert pixels.numpy().tolist() == [[2 * 24 - 1, 1, 0]]
    np.testing.assert_allclose(confidence[0, 1], np.exp(7) / (np.exp(7) + 2), rtol=1e-6)
    assert int(tf.reduce_sum(masks)) == 3 * 6, "the mask is whole: the caller takes the core"


def test_large_logits_do_not_overflow(colours_as_logits: keras.Model) -> None:
    images = np.full((1, 32, 32, 3), [255, 0, 0], np.uint8)
    _, pixels, confidence = compiled(colours_as_logits, PLAIN)(images, [(32, 32)], cores([(32, 32)]))
    assert pixels.numpy().tolist() == [[1024, 0, 0]]
    np.testing.assert_allclose(confidence, [[1024, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("preprocessing", [CAFFE_PREPROCESSING, Preprocessing()], ids=["caffe", "plain"])
def test_an_image_in_a_batch_gets_the_mask_it_gets_alone(preprocessing: Preprocessing) -> None:
    model = tiny_model()
    predict = compiled(model, preprocessing)
    rng = np.random.default_rng(0)
    sizes = [(64, 96), (33, 65), (50, 70), (64, 66)]
    batch = rng.integers(0, 256, (4, 64, 96, 3), np.uint8)  # what lies outside an image is not zero on purpose
    masks, pixels, confidence = predict(batch, sizes, cores(sizes))
    for i, (height, width) in enumerate(sizes):
        cut = batch[i : i + 1, :height, :width]
        logits = np.asarray(model(normalise(cut, preprocessing)))[0]  # the network pads by itself
        expected = logits.argmax(axis=-1)
        assert np.array_equal(masks[i, :height, :width], expected)
        assert pixels[i].numpy().tolist() == np.bincount(expected.ravel(), minlength=4).tolist()
        alone = np.zeros((1, 64, 96, 3), np.uint8)
        alone[:, :height, :width] = cut
        mask, _, confidence_alone = predict(alone, sizes[i : i + 1], cores(sizes[i : i + 1]))
        assert np.array_equal(masks[i, :height, :width], mask[0, :height, :width])
        np.testing.assert_allclose(confidence[i], confidence_alone[0], rtol=1e-5)
    assert len(np.unique(masks)) > 1


def test_confidence_is_the_softmax_of_the_logits() -> None:
    model = tiny_model()
    image = np.random.default_rng(1).integers(0, 256, (1, 32, 64, 3), np.uint8)
    _, _, confidence = compiled(model, Preprocessing())(image, [(32, 64)], cores([(32, 64)]))
    softmax = np.asarray(keras.ops.softmax(model(normalise(image, Preprocessing()))))[0]
    top, mask = softmax.max(axis=-1), softmax.argmax(axis=-1)
    np.testing.assert_allclose(confidence[0], [top[mask == k].sum() for k in range(4)], rtol=1e-5)


def test_what_lies_outside_spoils_no_class() -> None:
    masks = np.array([[[0, 1], [1, 1]]], np.uint8)
    confidence = np.array([[[0.5, np.nan], [0.75, 0.25]]], np.float32)
    inside = np.array([[[True, False], [True, True]]])
    pixels, totals = _tally(masks, confidence, inside, 2)
    assert np.asarray(pixels).tolist() == [[1, 2]]
    assert np.asarray(totals).tolist() == [[0.5, 1.0]]


def test_confidences_of_many_pixels_add_up(colours_as_logits: keras.Model) -> None:
    """A large tile: a sum over both axes at once would be off in the third digit."""
    side = 1024
    images = np.full((1, side, side, 3), [1, 0, 0], np.uint8)
    _, _, confidence = compiled(colours_as_logits, PLAIN)(images, [(side, side)], cores([(side, side)]))
    np.testing.assert_allclose(confidence[0, 0] / side**2, np.exp(1) / (np.exp(1) + 2), rtol=1e-6)


def test_arrays_are_tallied_as_the_graph_does_it() -> None:
    model = tiny_model()
    sizes = [(64, 96), (33, 65), (50, 70), (64, 66)]
    boxes = np.array([(0, 0, 64, 96), (1, 2, 33, 64), (0, 0, 50, 70), (63, 0, 64, 66)], np.int32)
    batch = np.random.default_rng(2).integers(0, 256, (4, 64, 96, 3), np.uint8)
    masks, pixels, confidence = compiled(model, PLAIN)(batch, sizes, boxes)
    found, each = (np.asarray(part) for part in build_mask_fn(model, PLAIN)(batch, np.array(sizes, np.int32)))
    assert np.array_equal(found, masks)
    assert each.shape == found.shape
    counted, totals = tally_arrays(found, each, boxes, 4)
    assert np.array_equal(counted, pixels)
    assert counted.sum(axis=1).tolist() == [64 * 96, 32 * 62, 50 * 70, 66]
    assert (counted > 0).sum(axis=1).max() > 1, "some image has several classes"
    np.testing.assert_allclose(totals, confidence, rtol=1e-5)


def test_what_lies_outside_a_core_of_arrays_spoils_no_class() -> None:
    masks = np.array([[[0, 1], [1, 1]], [[2, 2], [0, 2]]], np.uint8)
    confidence = np.array([[[0.5, np.nan], [0.75, np.nan]], [[1, 1], [np.inf, 1]]], np.float32)
    pixels, totals = tally_arrays(masks, confidence, np.array([(0, 0, 2, 1), (0, 0, 1, 2)], np.int32), 4)
    assert pixels.tolist() == [[1, 1, 0, 0], [0, 0, 2, 0]]
    assert totals.tolist() == [[0.5, 0.75, 0, 0], [0, 0, 2, 0]]
