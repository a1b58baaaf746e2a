from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.config import ModelSpec
from fcn_ray.models.backbones import BACKBONES
from fcn_ray.models.fcn import build_fcn, count_parameters
from fcn_ray.models.layers import Upsample
from tests.networks import tiny_model, tiny_spec, weight_arrays

pytestmark = pytest.mark.keras

VARIANTS = ("32s", "16s", "8s")
SIZES = [(1, 1), (1, 33), (33, 65), (224, 224), (375, 500), *((40, width) for width in range(32, 64))]


def image(*size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_as_large_as_the_image(backbone: str, variant: str) -> None:
    model = tiny_model(tiny_spec(backbone=backbone, variant=variant))
    signature = [tf.TensorSpec((None, None, None, 3), tf.float32)]
    forward = tf.function(lambda images: model(images, training=False), input_signature=signature)
    for height, width in SIZES:
        logits = forward(image(2, height, width))
        assert logits.shape == (2, height, width, 4)
        assert logits.dtype == tf.float32
        assert np.isfinite(logits).all()


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """'Same' convolution of (H, W, C) in float64, by the definition."""
    half = kernel.shape[0] // 2
    padded = np.pad(x, [(half, half), (half, half), (0, 0)])
    out = np.tile(bias.astype(np.float64), (*x.shape[:2], 1))
    for i, j in np.ndindex(kernel.shape[:2]):
        out += padded[i : i + x.shape[0], j : j + x.shape[1]] @ kernel[i, j].astype(np.float64)
    return out


def resize(x: np.ndarray, factor: int) -> np.ndarray:
    for axis in (0, 1):
        size = x.shape[axis]
        place = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        x = np.tensordot(np.maximum(1 - np.abs(place[:, None] - np.arange(size)), 0), np.moveaxis(x, axis, 0), axes=1)
        x = np.moveaxis(x, 0, axis)
    return x


def reference(x: np.ndarray, weights: dict[str, np.ndarray], variant: str) -> np.ndarray:
    """FCN in numpy, from the paper and not from our code."""
    height, width = x.shape[:2]
    x = np.pad(x, [(0, -height % 32), (0, -width % 32), (0, 0)])

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        return convolve(x, weights[f"{name}/kernel"], weights[f"{name}/bias"])

    pools = {}
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, depth + 1):
            x = np.maximum(layer(x, f"block{block}_conv{index}"), 0)
        x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))
        pools[block] = x
    for name in ("fc6", "fc7"):
        x = np.maximum(layer(x, name), 0)
    scores, stride = layer(x, "score_fr"), 32
    for level in {"32s": (), "16s": (4,), "8s": (4, 3)}[variant]:
        scores, stride = resize(scores, 2) + layer(pools[level], f"score_pool{level}"), stride // 2
    return resize(scores, stride)[:height, :width]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_arithmetic_of_the_paper(variant: str) -> None:
    model = tiny_model(tiny_spec(variant=variant))
    x = image(40, 70)
    expected = reference(x, weight_arrays(model), variant)
    assert expected.std() > 0.1
    np.testing.assert_allclose(model(x[None])[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "scored"),
    [
        ("32s", {"score_fr"}),
        ("16s", {"score_fr", "score_pool4"}),
        ("8s", {"score_fr", "score_pool4", "score_pool3"}),
    ],
)
def test_gradients_reach_the_scores_of_the_variant(variant: str, scored: set[str]) -> None:
    model = build_fcn(tiny_spec(variant=variant))
    kernels = {
        layer.name: layer.kernel.value
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.name.startswith("score")
    }
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(image(1, 64, 64), training=True)[..., 0])
    gradients = tape.gradient(loss, [kernels[name] for name in sorted(scored)])
    assert set(kernels) == scored
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_network_says_nothing(variant: str) -> None:
    """Zero scores: the first loss is ln(num_classes)."""
    logits = build_fcn(tiny_spec(variant=variant))(image(1, 33, 40))
    assert not np.any(logits)


def test_a_skip_at_zero_leaves_the_coarser_network_as_it_was() -> None:
    """16s starts as 32s upsampled in two steps (paper, section 4.2)."""
    coarse, fine = (tiny_model(tiny_spec(variant=variant)) for variant in ("32s", "16s"))
    weights = weight_arrays(coarse)
    for weight in fine.weights:
        weight.assign(weights.get(weight.path, np.zeros(weight.shape)))
    x = image(1, 64, 96)
    scores = keras.Model(coarse.input, coarse.get_layer("score_fr").output)(x)
    np.testing.assert_allclose(fine(x), Upsample(16)(Upsample(2)(scores)), atol=1e-5)
    assert np.std(fine(x)) > 0.01


def test_equal_seeds_give_equal_networks() -> None:
    first, second, other = (weight_arrays(build_fcn(tiny_spec(), seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    kernels = [name for name in first if name.endswith("kernel") and not name.startswith("score")]
    assert len(kernels) == 15
    assert not any(np.array_equal(first[name], other[name]) for name in kernels)


def test_dropout_of_fc6_and_fc7_differ() -> None:
    model = build_fcn(tiny_spec(), seed=1)
    assert model.get_layer("drop_fc6").seed != model.get_layer("drop_fc7").seed
    assert model.get_layer("drop_fc6").rate == 0.5


def test_training_drops_and_inference_does_not() -> None:
    model, x = tiny_model(), image(1, 64, 64)
    assert np.array_equal(model(x, training=False), model(x, training=False))
    assert not np.array_equal(model(x, training=True), model(x, training=True))


def test_bfloat16_keeps_weights_and_logits_in_float32() -> None:
    exact, fast = tiny_model(), tiny_model(precision="bfloat16")
    assert {str(weight.dtype) for weight in fast.weights} == {"float32"}
    assert {fast.get_layer(name).compute_dtype for name in ("block1_conv1", "block5_conv3", "fc7")} == {"bfloat16"}
    assert {fast.get_layer(name).compute_dtype for name in ("score_fr", "score_pool3", "logits")} == {"float32"}
    x = image(1, 64, 64)
    logits = fast(x)
    assert logits.dtype == tf.float32
    assert not np.array_equal(logits, exact(x))
    np.testing.assert_allclose(logits, exact(x), atol=0.05 * float(np.abs(exact(x)).max()))


def test_vgg16_fcn32s_has_the_parameters_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_ray.models.fcn.he_normal", lambda *_: "zeros")  # 120 million random numbers take seconds
    model = build_fcn(ModelSpec(variant="32s", num_classes=21))
    assert count_parameters(model) == 134_346_581
    skips = (512 + 1) * 21 + (256 + 1) * 21
    tiny32, tiny8 = (build_fcn(ModelSpec(variant=v, num_classes=21, fc_channels=1)) for v in ("32s", "8s"))
    assert count_parameters(tiny8) - count_parameters(tiny32) == skips


def test_first_loss_is_ln_of_the_classes() -> None:
    logits = build_fcn(tiny_spec(num_classes=7))(image(1, 8, 8))
    loss = keras.ops.sparse_categorical_crossentropy(np.zeros((1, 8, 8), np.int32), logits, from_logits=True)
    np.testing.assert_allclose(loss, math.log(7), rtol=1e-6)
