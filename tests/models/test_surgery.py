from __future__ import annotations

import keras
import numpy as np
import pytest

from fcn_ray.models.classifiers import build_classifier
from fcn_ray.models.layers import CeilMaxPooling
from fcn_ray.models.surgery import convolutionalize, dense_to_convolution, grow
from tests.networks import tiny_model, tiny_spec, weight_arrays

pytestmark = pytest.mark.keras

LAYERS = keras.layers


def image(*size: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, *size, 3)).astype(np.float32)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("name", "size"), [("alexnet", 227), ("alexnet_torchvision", 224)])
def test_alexnet_says_at_its_own_size_what_the_classifier_says(name: str, size: int) -> None:
    """R5: 1x1 cell, equal scores; the first dense layer spans 6x6 cells of 256 channels (not 7x7x512)."""
    classifier = build_classifier(name, 10, width=0.25)
    converted = convolutionalize(classifier)
    assert tuple(converted.get_layer("fc6").kernel.shape) == (6, 6, 64, 1024)
    x = image(size, size)
    expected = np.asarray(classifier(x))
    found = np.asarray(converted(x))
    assert found.shape == (1, 1, 1, 10)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_alexnet_of_500_pixels_has_ten_by_ten_cells() -> None:
    """The paper's figure, section 3.1; it takes Caffe's pooling, whose last window hangs over."""
    converted = convolutionalize(build_classifier("alexnet", 10, width=0.05))
    assert converted(image(500, 500)).shape == (1, 10, 10, 10)


@pytest.fixture(scope="module")
def vgg16() -> tuple[keras.Model, keras.Model]:
    """The real thing, 138 million weights, and its convolutional form."""
    classifier = build_classifier("vgg16")
    return classifier, convolutionalize(classifier)


@pytest.mark.slow
def test_vgg16_says_at_its_own_size_what_the_classifier_says(vgg16: tuple[keras.Model, keras.Model]) -> None:
    """R3 and R5: fc6 7x7x512x4096, fc7 and fc8 1x1; equal scores on 224x224."""
    classifier, converted = vgg16
    kernels = {layer.name: tuple(layer.kernel.shape) for layer in converted.layers if layer.name in ("fc1", "fc2")}
    assert kernels == {"fc1": (7, 7, 512, 4096), "fc2": (1, 1, 4096, 4096)}
    assert converted.count_params() == classifier.count_params() == 138_357_544
    x = image(224, 224) * 60
    expected, found = np.asarray(classifier(x)), np.asarray(converted(x))
    assert found.shape == (1, 1, 1, 1000)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.slow
def test_vgg16_of_384_pixels_gives_six_by_six_windows(vgg16: tuple[keras.Model, keras.Model]) -> None:
    """R6: exact for the head on every window of pool5; loose for whole windows, whose borders VGG16 pads with zeros."""
    classifier, converted = vgg16
    x = image(384, 384) * 60
    cells = np.asarray(converted(x))
    assert cells.shape == (1, 6, 6, 1000)
    pool5 = keras.Model(converted.input, converted.get_layer("block5_pool").output)(x)
    windows = np.stack([pool5[0, i : i + 7, j : j + 7] for i in range(6) for j in range(6)])
    scores = LAYERS.Input((7, 7, 512))
    head = scores
    for layer in classifier.layers[classifier.layers.index(classifier.get_layer("flatten")) :]:
        head = layer(head)
    dense = np.asarray(keras.Model(scores, head)(windows)).reshape(1, 6, 6, 1000)
    assert relative(cells, dense) < 1e-4
    # A window cut out of the image has zeros where the image goes on: only the cell that sees none of them is the same.
    trunk = keras.Model(classifier.input, classifier.get_layer("block5_pool").output)
    cut = np.asarray(trunk(x[:, 64:288, 64:288]))[0]
    whole = np.asarray(pool5)[0, 2:9, 2:9]
    assert relative(cut[3, 3], whole[3, 3]) < 1e-4
    assert relative(cut[0, 0], whole[0, 0]) > 0.01


def test_without_zero_padding_it_is_the_classifier_slid_over_the_image() -> None:
    """R6, end to end: every cell is the score of its own window."""
    classifier = keras.Sequential(
        [
            LAYERS.Input((20, 20, 3)),
            LAYERS.Conv2D(6, 3, activation="relu"),
            LAYERS.MaxPooling2D(2),
            LAYERS.Conv2D(8, 3, activation="relu"),
            LAYERS.Flatten(),
            LAYERS.Dense(12, name="a"),
            LAYERS.ReLU(),
            LAYERS.Dropout(0.5),
            LAYERS.Dense(5, activation="softmax", use_bias=False, name="b"),
        ]
    )
    converted = convolutionalize(classifier)
    x = image(30, 26)
    cells = np.asarray(converted(x))
    assert cells.shape == (1, 6, 4, 5)
    for i, j in np.ndindex(6, 4):
        window = np.asarray(classifier(x[:, 2 * i : 2 * i + 20, 2 * j : 2 * j + 20]))
        np.testing.assert_allclose(cells[:, i, j], window, atol=1e-6)


@pytest.mark.parametrize("order", ["torch", "caffe"])
def test_a_classifier_copied_from_torch_or_caffe_needs_its_own_order(order: str) -> None:
    """R3: there the features are flattened channels first; a plain reshape gives other scores."""
    inputs = LAYERS.Input((8, 10, 3))
    features = LAYERS.Conv2D(4, 3, padding="same", name="conv")(inputs)
    channels_first = LAYERS.Flatten()(LAYERS.Permute((3, 1, 2))(features))
    torch = keras.Model(inputs, LAYERS.Dense(6, name="fc")(channels_first))
    copied = keras.Model(inputs, LAYERS.Dense(6, name="fc")(LAYERS.Flatten()(features)))
    copied.get_layer("fc").set_weights(torch.get_layer("fc").get_weights())
    x = image(8, 10)
    expected = np.asarray(torch(x))
    np.testing.assert_allclose(convolutionalize(copied, flatten=order)(x)[:, 0, 0], expected, atol=1e-5)
    assert np.abs(np.asarray(convolutionalize(copied)(x))[:, 0, 0] - expected).max() > 0.1


def test_a_kernel_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dense kernel \(10, 4\) does not fit features of shape \(2, 3, 2\)"):
        dense_to_convolution(np.zeros((10, 4)), (2, 3, 2), "keras")


@pytest.mark.parametrize("middle", [[], [LAYERS.Flatten(), LAYERS.Flatten()]], ids=["none", "two"])
def test_what_is_no_classifier_is_refused(middle: list[LAYERS.Layer]) -> None:
    network = keras.Sequential([LAYERS.Input((8, 8, 3)), *middle, LAYERS.Dense(2)], name="odd")
    with pytest.raises(ValueError, match=f"odd has {len(middle)} Flatten layers"):
        convolutionalize(network)


def test_a_layer_without_a_convolutional_form_is_named() -> None:
    network = keras.Sequential([LAYERS.Input((8, 8, 3)), LAYERS.Flatten(), LAYERS.LayerNormalization(name="norm")])
    with pytest.raises(ValueError, match=r"norm \(LayerNormalization\) behind Flatten"):
        convolutionalize(network)


def test_a_head_that_forks_is_refused() -> None:
    inputs = LAYERS.Input((4, 4, 2))
    flat = LAYERS.Flatten(name="flat")(inputs)
    network = keras.Model(inputs, [LAYERS.Dense(3, name="a")(flat), LAYERS.Dense(3, name="b")(flat)])
    with pytest.raises(ValueError, match="layer b does not read a: expected a chain"):
        convolutionalize(network)


def test_what_was_frozen_or_half_precise_stays_so() -> None:
    dense = LAYERS.Dense(3, name="a", trainable=False, dtype="mixed_bfloat16")
    network = keras.Sequential([LAYERS.Input((4, 4, 2)), LAYERS.Flatten(), dense])
    converted = convolutionalize(network).get_layer("a")
    assert (converted.trainable, converted.dtype_policy.name) == (False, "mixed_bfloat16")


def test_layers_of_our_own_are_converted_too() -> None:
    converted = convolutionalize(build_classifier("alexnet", 3, width=0.02))
    assert [layer.name for layer in converted.layers if isinstance(layer, CeilMaxPooling)] == [
        "pool1",
        "pool2",
        "pool5",
    ]


@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("geometry", ["same", "paper"])
@pytest.mark.parametrize("backbone", ["vgg16", "alexnet"])
def test_a_grown_network_says_what_the_old_one_said_in_two_steps(backbone: str, geometry: str, fusion: str) -> None:
    """R9: the scores of the old network through the new one's upsampling; the grown skips have said nothing yet."""
    spec = tiny_spec(backbone=backbone, variant="32s", geometry=geometry, fusion=fusion)
    coarse = tiny_model(spec)
    middle, finer = grow(coarse, spec, "16s")
    fine, finest = grow(middle, finer, "8s")
    assert (finer.variant, finest.variant, finest.backbone) == ("16s", "8s", backbone)
    x = image(70, 100)
    old = np.asarray(keras.Model(coarse.input, coarse.get_layer("score_fr").output)(x))
    assert old.std() > 0.01
    for grown in (middle, fine):
        scores = old
        for layer in grown.layers:
            if layer.name.startswith("upsample_"):
                scores = np.asarray(layer(scores))
        first = grown.get_layer("logits").offset
        expected = scores[:, first : first + 70, first : first + 100]
        np.testing.assert_allclose(grown(x), expected, atol=1e-5)
    weights, before = weight_arrays(fine), weight_arrays(coarse)
    assert all(np.array_equal(weights[name], array) for name, array in before.items())
    assert not any(weights[name].any() for name in weights.keys() - before.keys() if name.startswith("score"))


def test_a_network_does_not_shrink() -> None:
    spec = tiny_spec(variant="16s")
    for variant in ("32s", "4s"):
        with pytest.raises(ValueError, match=f"a 16s network cannot become {variant}: it grows 32s -> 16s -> 8s"):
            grow(tiny_model(spec), spec, variant)


def test_learned_deconvolutions_of_another_stride_start_anew() -> None:
    spec = tiny_spec(variant="32s", upsampling="deconv_learned")
    coarse = tiny_model(spec)
    grown, _ = grow(coarse, spec, "16s")
    assert tuple(grown.get_layer("upsample_to_image").kernel.shape) == (32, 32, 4, 4)
    assert np.array_equal(grown.get_layer("fc6").get_weights()[0], coarse.get_layer("fc6").get_weights()[0])


def test_a_new_level_is_scaled_as_the_old_ones_are() -> None:
    spec = tiny_spec(variant="32s")
    coarse = tiny_model(spec)
    assert [float(grow(coarse, spec, "8s")[0].get_layer(n).factor) for n in ("scale_pool4", "scale_pool3")] == [1, 1]
    coarse.get_layer("scale_pool5").factor.assign(1 / 8)  # as load_backbone_weights leaves it
    grown, _ = grow(coarse, spec, "8s")
    scales = [float(grown.get_layer(name).factor) for name in ("scale_pool5", "scale_pool4", "scale_pool3")]
    assert scales == [1 / 8, 1 / 128, 1 / 512]
