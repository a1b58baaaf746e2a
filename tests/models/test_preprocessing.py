from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.config import CAFFE_PREPROCESSING, Preprocessing
from fcn_ray.models.preprocessing import Normalise, normalise

pytestmark = pytest.mark.keras

PIXEL = np.uint8([[[[10, 20, 250]]]])


def test_rgb_is_scaled_in_its_own_order() -> None:
    found = normalise(PIXEL, Preprocessing(mean=(1, 2, 3), std=(1, 2, 4)))
    np.testing.assert_allclose(found, [[[[9, 9, 61.75]]]])
    assert found.dtype == tf.float32


def test_bgr_is_turned_round_before_the_mean_is_taken() -> None:
    found = normalise(PIXEL, CAFFE_PREPROCESSING)
    np.testing.assert_allclose(found, [[[[250 - 103.939, 20 - 116.779, 10 - 123.68]]]], rtol=1e-6)


def test_as_a_layer_it_is_the_same_and_serialises() -> None:
    layer = Normalise(CAFFE_PREPROCESSING, name="normalise")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    np.testing.assert_array_equal(again(PIXEL), normalise(PIXEL, CAFFE_PREPROCESSING))
    assert again.get_config() == layer.get_config()
    assert again.compute_output_shape((None, None, None, 3)) == (None, None, None, 3)


@pytest.mark.parametrize(
    ("preprocessing", "colour"),
    [
        (CAFFE_PREPROCESSING, (124, 117, 104)),
        (Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)), (124, 116, 104)),
        (Preprocessing(mean=(-3, 300, 0)), (0, 255, 0)),
    ],
)
def test_the_mean_colour_is_nearest_to_the_networks_zero(
    preprocessing: Preprocessing, colour: tuple[int, int, int]
) -> None:
    assert preprocessing.mean_colour() == colour
    if min(preprocessing.mean) > 0:
        found = normalise(np.full((1, 1, 1, 3), colour, np.uint8), preprocessing)
        assert np.abs(np.asarray(found) * np.array(preprocessing.std)).max() <= 0.5
