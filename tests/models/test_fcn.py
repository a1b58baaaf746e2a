from __future__ import annotations

import math
from itertools import product

import keras
import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.config import PAPER_BACKBONES, ModelSpec
from fcn_ray.models.backbones import BACKBONES
from fcn_ray.models.fcn import build_fcn, count_parameters
from fcn_ray.models.layers import CropLike
from fcn_ray.models.surgery import transplant
from fcn_ray.models.upsampling import Deconvolution, Upsample
from tests.networks import any_size, shared_model, tiny_model, tiny_spec, weight_arrays

pytestmark = pytest.mark.keras

VARIANTS = ("32s", "16s", "8s")
SIZES = [(1, 1), (1, 33), (33, 65), (224, 224), (375, 500), *((40, width) for width in range(32, 64))]


def image(*size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32)


SIDES = [*range(1, 71), *range(485, 517)]
"""Every size up to 70, and every residue of the grid around 500, along both axes: rows and columns do not mix."""


def assert_sizes(model: keras.Model, sizes: list[tuple[int, int]]) -> None:
    forward = any_size(model)
    for height, width in sizes:
        logits = forward(image(1, height, width))
        assert logits.shape == (1, height, width, 4)
        assert logits.dtype == tf.float32
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_as_large_as_the_image(backbone: str, variant: str) -> None:
    heavy = backbone not in PAPER_BACKBONES
    assert_sizes(shared_model(backbone=backbone, variant=variant), SIZES[:3] if heavy else SIZES)


@pytest.mark.parametrize("geometry", ["same", "paper"])
@pytest.mark.parametrize("backbone", ["vgg16", "alexnet"])
def test_every_side_is_right_in_both_geometries(backbone: str, geometry: str) -> None:
    for variant in VARIANTS:
        model = tiny_model(tiny_spec(backbone=backbone, variant=variant, geometry=geometry))
        assert_sizes(model, [(side, 70 - side % 70) for side in SIDES] + [(1, side) for side in SIDES[70:]])


@pytest.mark.parametrize("geometry", ["same", "paper"])
@pytest.mark.parametrize(
    "changes", [{"upsampling": "deconv_fixed"}, {"upsampling": "deconv_learned", "fusion": "concat"}]
)
def test_sizes_are_right_however_scores_are_upsampled_and_joined(changes: dict[str, str], geometry: str) -> None:
    for backbone in ("vgg16", "alexnet"):
        model = tiny_model(tiny_spec(backbone=backbone, geometry=geometry, **changes))
        assert_sizes(model, [(1, 1), (1, 33), (70, 5), *((33, side) for side in range(64, 96, 5))])


def test_a_coarser_backbone_grid_has_fewer_scores() -> None:
    """At output stride 16 the dilated last stage is what 16s scores, and 8s adds one skip."""
    for variant, scores in (("16s", {"score_fr"}), ("8s", {"score_fr", "score_pool3"})):
        model = shared_model(backbone="resnet50", variant=variant, output_stride=16)
        assert {layer.name for layer in model.layers if layer.name.startswith("score")} == scores
        assert_sizes(model, [(33, 65)])


def test_no_layer_is_fully_connected() -> None:
    dense = (keras.layers.Dense, keras.layers.Flatten, keras.layers.GlobalAveragePooling2D)
    for backbone in PAPER_BACKBONES:
        assert not [layer for layer in build_fcn(tiny_spec(backbone=backbone)).layers if isinstance(layer, dense)]


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


def backbone_pools(x: np.ndarray, weights: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Pools 1 to 5 of VGG16; a pool's last row or column may stand alone, as in Caffe."""
    pools = {}
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, depth + 1):
            name = f"block{block}_conv{index}"
            x = np.maximum(convolve(x, weights[f"{name}/kernel"], weights[f"{name}/bias"]), 0)
        x = np.pad(x, [(0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)])
        x = pools[block] = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))
    return pools


LEVELS = {"32s": (), "16s": (4,), "8s": (4, 3)}


def reference(x: np.ndarray, weights: dict[str, np.ndarray], variant: str) -> np.ndarray:
    """FCN in numpy, from the paper and not from our code."""
    height, width = x.shape[:2]
    pools = backbone_pools(np.pad(x, [(0, -height % 32), (0, -width % 32), (0, 0)]), weights)

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        return convolve(x, weights[f"{name}/kernel"], weights[f"{name}/bias"])

    x = pools[5]
    for name in ("fc6", "fc7"):
        x = np.maximum(layer(x, name), 0)
    scores, stride = layer(x, "score_fr"), 32
    for level in LEVELS[variant]:
        scores, stride = resize(scores, 2) + layer(pools[level], f"score_pool{level}"), stride // 2
    return resize(scores, stride)[:height, :width]


def deconvolve(x: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear deconvolution of kernel 2 `factor` without padding, as the release fills it."""
    ramp = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    height, width, channels = x.shape
    out = np.zeros(((height + 1) * factor, (width + 1) * factor, channels))
    for i, j in np.ndindex(height, width):
        out[i * factor : (i + 2) * factor, j * factor : (j + 2) * factor] += x[i, j] * np.outer(ramp, ramp)[..., None]
    return out


def paper_reference(x: np.ndarray, weights: dict[str, np.ndarray], variant: str) -> np.ndarray:
    """The release's net.py in numpy: pad 100, ceil pooling, and the crops that it has as numbers."""
    height, width = x.shape[:2]
    # Zeros of 99 and the convolution's own 1; the inner convolutions pad by 1.
    pools = backbone_pools(np.pad(x, [(99, 99), (99, 99), (0, 0)]), weights)

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        return convolve(x, weights[f"{name}/kernel"], weights[f"{name}/bias"])

    x = np.maximum(layer(pools[5], "fc6")[3:-3, 3:-3], 0)
    scores, stride = layer(np.maximum(layer(x, "fc7"), 0), "score_fr"), 32
    for level, crop in zip(LEVELS[variant], (5, 9), strict=False):
        scores, stride = deconvolve(scores, 2), stride // 2
        skip = layer(pools[level], f"score_pool{level}")[crop:, crop:]
        scores = scores + skip[: scores.shape[0], : scores.shape[1]]
    crop = {"32s": 19, "16s": 27, "8s": 31}[variant]
    return deconvolve(scores, stride)[crop : crop + height, crop : crop + width]


@pytest.mark.parametrize("upsampling", ["deconv_fixed", "bilinear", "deconv_learned"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_paper_geometry_is_the_release(variant: str, upsampling: str) -> None:
    model = tiny_model(tiny_spec(variant=variant, geometry="paper", upsampling=upsampling))
    for size in ((1, 2), (50, 37)):
        x = image(*size)
        expected = paper_reference(x, weight_arrays(model), variant)
        np.testing.assert_allclose(model(x[None])[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "variant", "crops"),
    [
        ("vgg16", "32s", [19]),
        ("vgg16", "16s", [5, 27]),
        ("vgg16", "8s", [5, 9, 31]),
        ("alexnet", "32s", [18]),
        ("alexnet_torchvision", "32s", [18]),
    ],
)
def test_crops_are_those_of_the_release(backbone: str, variant: str, crops: list[int]) -> None:
    for upsampling in ("bilinear", "deconv_fixed"):
        spec = tiny_spec(backbone=backbone, variant=variant, geometry="paper", upsampling=upsampling)
        assert [layer.offset for layer in build_fcn(spec).layers if isinstance(layer, CropLike)] == crops
    kernels = [layer.kernel_size for layer in build_fcn(spec).layers if isinstance(layer, Deconvolution)]
    assert kernels == {"32s": [64 if backbone == "vgg16" else 63], "16s": [4, 32], "8s": [4, 4, 16]}[variant]


@pytest.mark.parametrize("geometry", ["same", "paper"])
@pytest.mark.parametrize("backbone", PAPER_BACKBONES)
def test_the_streams_of_8s_agree_in_position(backbone: str, geometry: str) -> None:
    """A point of light, moved over one cell of the coarsest stride: where each stream sees it, on average (R8)."""
    model = build_fcn(tiny_spec(backbone=backbone, geometry=geometry, num_classes=2))
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            weight.assign(np.full(weight.shape, 1 / np.prod(weight.shape[:-1])))
    places = 240 + np.arange(32)
    light = np.zeros((32, 512, 64, 3), np.float32)
    light[np.arange(32), places, 32] = 1
    layers = {name: model.get_layer(name) for name in ("score_fr", "score_pool4", "score_pool3")}
    weights = {name: layer.get_weights() for name, layer in layers.items()}
    forward, found = any_size(model), {}
    axes = (1, 2) if (backbone, geometry) == ("vgg16", "same") else (1,)  # rows and columns run through one code
    for name, axis in product(layers, axes):
        for other, layer in layers.items():
            layer.set_weights([array * (other == name) for array in weights[other]])
        seen = np.asarray(forward(light if axis == 1 else light.transpose(0, 2, 1, 3)))[..., 0].astype(np.float64)
        along = seen.sum(axis=3 - axis)
        found[name, axis] = np.mean(along @ np.arange(512) / along.sum(axis=1) - places)
    assert max(found.values()) - min(found.values()) <= 0.5, found
    assert max(abs(shift) for shift in found.values()) <= 0.5, found


def test_concatenation_starts_as_the_sum() -> None:
    """R10: a 1x1 convolution with one identity above another adds."""
    x = image(1, 40, 70)
    for variant in ("16s", "8s"):
        summed, side_by_side = (tiny_model(tiny_spec(variant=variant, fusion=f)) for f in ("sum", "concat"))
        transplant(weight_arrays(summed), side_by_side)
        for layer in side_by_side.layers:
            if layer.name in ("fuse_score_pool4", "fuse_score_pool3"):
                kernel, bias = layer.get_weights()
                assert np.array_equal(kernel[0, 0], np.tile(np.eye(4), (2, 1)))
                layer.set_weights([kernel, 0 * bias])
        np.testing.assert_allclose(side_by_side(x), summed(x), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_arithmetic_of_the_paper(variant: str) -> None:
    model = tiny_model(tiny_spec(variant=variant))
    x = image(40, 70)
    expected = reference(x, weight_arrays(model), variant)
    assert expected.std() > 0.1
    np.testing.assert_allclose(model(x[None])[0], expected, rtol=1e-3, atol=1e-4)
    for upsampling in ("deconv_fixed", "deconv_learned"):
        other = tiny_model(tiny_spec(variant=variant, upsampling=upsampling))
        transplant(weight_arrays(model), other)
        np.testing.assert_allclose(other(x[None])[0], expected, rtol=1e-3, atol=1e-4)


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
