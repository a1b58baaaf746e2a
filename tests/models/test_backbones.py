from __future__ import annotations

from itertools import combinations
from typing import Any

import keras
import numpy as np
import pytest

from fcn_ray.models.backbones import BACKBONES, he_normal, scaled, seed_of
from tests.networks import tiny_spec

pytestmark = pytest.mark.keras


def backbone_model(name: str, *strides: int, **changes: Any) -> keras.Model:
    spec = tiny_spec(backbone=name, **changes)
    inputs = keras.Input((None, None, 3))
    features = BACKBONES[name](inputs, spec, seed=1)
    return keras.Model(inputs, [features[stride] for stride in strides] if strides else list(features.values()))


@pytest.mark.parametrize(
    ("name", "application", "options"),
    [
        ("vgg16", "VGG16", {}),
        ("resnet50", "ResNet50", {}),
        ("mobilenetv3_large", "MobileNetV3Large", {"include_preprocessing": False}),
        ("mobilenetv3_small", "MobileNetV3Small", {"include_preprocessing": False}),
    ],
)
def test_it_is_the_network_of_keras_applications(name: str, application: str, options: dict[str, Any]) -> None:
    ours = backbone_model(name, 32, width=1.0)
    theirs = getattr(keras.applications, application)(include_top=False, weights=None, **options)
    assert [(w.path, tuple(w.shape)) for w in ours.weights] == [(w.path, tuple(w.shape)) for w in theirs.weights]
    ours.set_weights(theirs.get_weights())
    x = np.random.default_rng(0).normal(size=(1, 64, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(x)[0], theirs(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg16", "alexnet", "mobilenetv3_small"])
def test_without_a_seed_kernels_are_zeros(name: str) -> None:
    inputs = keras.Input((None, None, 3))
    features = BACKBONES[name](inputs, tiny_spec(backbone=name), seed=None)
    kernels = [weight for weight in keras.Model(inputs, features[32]).weights if "kernel" in weight.path]
    assert len(kernels) > 3
    assert not any(keras.ops.any(kernel) for kernel in kernels)


@pytest.mark.parametrize("name", BACKBONES)
def test_features_come_by_stride(name: str) -> None:
    features = BACKBONES[name](keras.Input((64, 96, 3)), tiny_spec(backbone=name), seed=1)
    assert {stride: feature.shape[1:3] for stride, feature in features.items()} == {
        8: (8, 12),
        16: (4, 6),
        32: (2, 3),
    }


def test_resnet50_dilates_instead_of_striding_when_asked() -> None:
    """The cells of the usual last stage are every second cell of the dilated one, away from the border."""
    usual = backbone_model("resnet50", 32)
    dense = backbone_model("resnet50", 16, variant="8s", output_stride=16)
    dense.set_weights(usual.get_weights())
    x = np.random.default_rng(0).normal(size=(1, 512, 32, 3)).astype(np.float32)
    cells, finer = np.asarray(usual(x)[0]), np.asarray(dense(x)[0])
    assert (cells.shape[:2], finer.shape[:2]) == ((16, 1), (32, 2))
    np.testing.assert_allclose(finer[8:24:2, 0], cells[4:12, 0], rtol=1e-3, atol=1e-3)
    spec = tiny_spec(backbone="resnet50", variant="8s", output_stride=16)
    assert set(BACKBONES["resnet50"](keras.Input((64, 64, 3)), spec)) == {8, 16}


@pytest.mark.parametrize(("name", "channels"), [("alexnet", (96, 256, 256)), ("alexnet_torchvision", (64, 192, 256))])
def test_alexnet_has_its_published_shapes(name: str, channels: tuple[int, ...]) -> None:
    model = backbone_model(name, 8, 16, 32, width=1.0)
    assert tuple(output.shape[-1] for output in model.outputs) == channels
    shapes = {w.path: tuple(w.shape) for w in model.weights if w.path.endswith("kernel")}
    assert (
        shapes
        == {
            "alexnet": {
                "conv1/kernel": (11, 11, 3, 96),
                "conv2/kernel": (5, 5, 48, 256),
                "conv3/kernel": (3, 3, 256, 384),
                "conv4/kernel": (3, 3, 192, 384),
                "conv5/kernel": (3, 3, 192, 256),
            },
            "alexnet_torchvision": {
                "conv1/kernel": (11, 11, 3, 64),
                "conv2/kernel": (5, 5, 64, 192),
                "conv3/kernel": (3, 3, 192, 384),
                "conv4/kernel": (3, 3, 384, 256),
                "conv5/kernel": (3, 3, 256, 256),
            },
        }[name]
    )
    assert {layer.name for layer in model.layers if layer.name.startswith("norm")} == (
        {"norm1", "norm2"} if name == "alexnet" else set()
    )


@pytest.mark.parametrize("name", ["vgg16", "alexnet", "alexnet_torchvision"])
def test_features_of_a_random_backbone_keep_the_magnitude_of_the_image(name: str) -> None:
    model = backbone_model(name, width=0.5)
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    for feature in model(x):
        assert 0.3 < float(np.sqrt(np.mean(np.square(feature)))) < 6


def test_networks_of_keras_draw_from_the_seed_and_share_their_statistics() -> None:
    first, again = (backbone_model("mobilenetv3_small", 32) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), again.get_weights(), strict=True))
    kernels = [layer.get_weights()[0] for layer in first.layers if isinstance(layer, keras.layers.Conv2D)]
    same_shape = [k for k in kernels if k.shape == kernels[-2].shape]
    assert not any(np.array_equal(a, b) for a, b in combinations(same_shape, 2))
    norms = [layer for layer in first.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    assert all(layer.synchronized for layer in norms), "or each worker would keep statistics of its own images"


def test_a_policy_reaches_every_layer() -> None:
    inputs = keras.Input((None, None, 3))
    features = BACKBONES["mobilenetv3_small"](inputs, tiny_spec(backbone="mobilenetv3_small"), dtype="mixed_bfloat16")
    assert {feature.dtype for feature in features.values()} == {"bfloat16"}


def test_width_scales_channels_and_leaves_at_least_one() -> None:
    assert [scaled(64, width) for width in (1.0, 0.25, 1e-6)] == [64, 16, 1]
    assert [scaled(96, width, groups=2) for width in (1.0, 0.03, 1e-6)] == [96, 2, 2]


def test_a_seed_belongs_to_a_name() -> None:
    assert seed_of("fc6", 0) == seed_of("fc6", 0)
    assert len({seed_of("fc6", 0), seed_of("fc7", 0), seed_of("fc6", 1)}) == 3
    kernels = [np.asarray(he_normal(name, 0)((3, 3, 8, 8))) for name in ("fc6", "fc6", "fc7")]
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
