from __future__ import annotations

import keras
import numpy as np
import pytest

from fcn_ray.models.backbones import BACKBONES, he_normal, scaled, seed_of, vgg16

pytestmark = pytest.mark.keras


def test_vgg16_has_the_layers_of_keras_applications() -> None:
    inputs = keras.Input((None, None, 3))
    ours = keras.Model(inputs, vgg16(inputs, 1.0)[32])
    theirs = keras.applications.VGG16(include_top=False, weights=None)
    assert [(w.path, tuple(w.shape)) for w in ours.weights] == [(w.path, tuple(w.shape)) for w in theirs.weights]
    ours.set_weights(theirs.get_weights())
    x = np.random.default_rng(0).normal(size=(1, 64, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_features_come_by_stride(name: str) -> None:
    inputs = keras.Input((64, 96, 3))
    features = BACKBONES[name](inputs, 0.02, seed=1, dtype="float32")
    assert {stride: feature.shape[1:3] for stride, feature in features.items()} == {
        8: (8, 12),
        16: (4, 6),
        32: (2, 3),
    }


def test_features_of_a_random_backbone_keep_the_magnitude_of_the_image() -> None:
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, list(vgg16(inputs, 0.5).values()))
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    for feature in model(x):
        assert 0.3 < float(np.sqrt(np.mean(np.square(feature)))) < 5


def test_width_scales_channels_and_leaves_at_least_one() -> None:
    assert [scaled(64, width) for width in (1.0, 0.25, 1e-6)] == [64, 16, 1]


def test_a_seed_belongs_to_a_name() -> None:
    assert seed_of("fc6", 0) == seed_of("fc6", 0)
    assert len({seed_of("fc6", 0), seed_of("fc7", 0), seed_of("fc6", 1)}) == 3
    kernels = [np.asarray(he_normal(name, 0)((3, 3, 8, 8))) for name in ("fc6", "fc6", "fc7")]
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
