"""Networks that start from a classifier: what is set, what stays, and that its scores come out of fc7."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy

from fcn_ray.errors import ConfigError
from fcn_ray.models.fcn import backbone_layers, build_fcn
from fcn_ray.models.weight_files import LAYERS
from fcn_ray.models.weights import MAGNITUDES, load_backbone_weights
from tests.networks import tiny_model, tiny_spec, weight_arrays

pytestmark = pytest.mark.keras

Arrays = dict[str, np.ndarray]

SCALES = ("scale_pool3/factor", "scale_pool4/factor", "scale_pool5/factor")

VGG16 = list(LAYERS["vgg16"])


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """Backbone of another tiny network, with biases that are not zero."""
    return {name: array for name, array in weight_arrays(tiny_model(seed=9)).items() if name.startswith("block")}


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    """VGG16 of the width of `tiny_spec` with the dense layers of keras-applications: 6 channels, 10 classes."""
    x = inputs = keras.Input((224, 224, 3))
    rng = np.random.default_rng(4)
    for layer, channels in LAYERS["vgg16"].items():
        x = keras.layers.Conv2D(max(1, round(channels * 0.02)), 3, padding="same", activation="relu", name=layer)(x)
        if layer in ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"):
            x = keras.layers.MaxPooling2D(2, name=layer.partition("_")[0] + "_pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(6, activation="relu", name="fc1")(x)
    x = keras.layers.Dense(6, activation="relu", name="fc2")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="predictions")(x))
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            magnitude = np.sqrt(2 / kernel[..., 0].size)
            layer.set_weights([rng.normal(0.3 * magnitude, magnitude, kernel.shape), rng.uniform(0, 0.1, bias.shape)])
    return model


def write_npz(path: Path, arrays: Arrays, dtype: str = "float32") -> str:
    np.savez(path, **{name: array.astype(dtype) for name, array in arrays.items()})
    return str(path)


def assert_loaded(model: keras.Model, arrays: Arrays, **tolerance: float) -> None:
    found = weight_arrays(model)
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array, err_msg=name, **tolerance)


def write_torch(path: Path, classifier: keras.Model) -> str:
    """`classifier` as torchvision stores VGG16: (out, in, height, width), and (channels, height, width) flattened."""
    stored = {}
    for layer, place in zip(VGG16, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True):
        kernel, bias = classifier.get_layer(layer).get_weights()
        stored |= {f"features.{place}.weight": kernel.transpose(3, 2, 0, 1), f"features.{place}.bias": bias}
    for layer, place in (("fc1", 0), ("fc2", 3), ("predictions", 6)):
        kernel, bias = classifier.get_layer(layer).get_weights()
        if layer == "fc1":
            kernel = kernel.reshape(7, 7, 10, -1).transpose(2, 0, 1, 3).reshape(490, -1)
        stored |= {f"classifier.{place}.weight": kernel.T, f"classifier.{place}.bias": bias}
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in stored.items()}, path)
    return str(path)


def save(path: Path, classifier: keras.Model) -> str:
    classifier.save(path)
    return str(path)


def write_caffe(path: Path, classifier: keras.Model) -> str:
    stored = {}
    for name, array in safetensors.numpy.load_file(write_torch(path.with_suffix(".part"), classifier)).items():
        kind, place, end = name.split(".")
        if kind == "features":
            layer = VGG16[(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28).index(int(place))]
            layer = re.sub(r"block(\d)_conv(\d)", r"conv\1_\2", layer)
        else:
            layer = {"0": "fc6", "3": "fc7", "6": "fc8"}[place]
        stored[f"{layer}/{['weight', 'bias'].index(end)}"] = array
    return write_npz(path, stored)


# ------------------------------------------------------------------------------------------------- what is set


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_backbone_alone(tmp_path: Path, arrays: Arrays, dtype: str) -> None:
    model = build_fcn(tiny_spec())
    head = {name: array for name, array in weight_arrays(model).items() if name.startswith(("fc", "score"))}
    names = load_backbone_weights(model, write_npz(tmp_path / "w.npz", arrays, dtype), "vgg16")
    assert_loaded(model, arrays, **({"atol": 2e-3} if dtype == "float16" else {"atol": 0}))
    assert_loaded(model, head, atol=0)
    assert names == VGG16


@pytest.mark.parametrize("scales", ["features", "paper"])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.keras", save),
        ("w.h5", save),
        ("w.weights.h5", lambda path, model: model.save_weights(path) or str(path)),
        ("w.safetensors", write_torch),
        ("w.npz", write_caffe),
    ],
)
def test_the_scores_of_the_classifier_come_out_of_fc7(
    tmp_path: Path, classifier: keras.Model, name: str, write: Callable[[Path, keras.Model], str], scales: Any
) -> None:
    """R5, end to end: at the classifier's own size the middle cell of fc7 sees all of pool5, and no padding."""
    model = build_fcn(tiny_spec(variant="16s"))
    source = write(tmp_path / name, classifier)
    assert load_backbone_weights(model, source, "vgg16", scales) == [*VGG16, "fc6", "fc7"]
    image = np.random.default_rng(6).normal(size=(1, 224, 224, 3)).astype(np.float32)
    dense = keras.Model(classifier.input, classifier.get_layer("fc2").output)(image)[0]
    cells = keras.Model(model.input, model.get_layer("fc7").output)(image)[0]
    assert len(set(np.array(dense).tolist())) > 4
    np.testing.assert_allclose(cells[3, 3], dense, rtol=1e-5, atol=1e-5)
    assert np.abs(cells[2, 3] - dense).max() > 1e-3 * np.max(dense)


def test_a_slimmer_head_stays_random(tmp_path: Path, classifier: keras.Model, caplog: pytest.LogCaptureFixture) -> None:
    model = build_fcn(tiny_spec(fc_channels=5))
    head = {name: array for name, array in weight_arrays(model).items() if name.startswith("fc")}
    with caplog.at_level(logging.INFO):
        assert load_backbone_weights(model, save(tmp_path / "w.keras", classifier), "vgg16") == VGG16
    assert_loaded(model, head, atol=0)
    assert re.search(r"w.keras: fc6 and fc7 stay random: .*\(7, 7, 10, 5\).*classifier .*\(7, 7, 10, 6\)", caplog.text)


# ---------------------------------------------------------------------------------------------------- the scales


def test_levels_are_scaled_to_about_one(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec())
    assert [weight_arrays(model)[name] for name in SCALES] == [1, 1, 1]
    load_backbone_weights(model, write_npz(tmp_path / "w.npz", arrays), "vgg16")
    assert [weight_arrays(model)[name] for name in SCALES] == [1 / 512, 1 / 128, 1 / 8]
    for magnitudes in MAGNITUDES.values():
        assert {name.split("/")[0] for name in SCALES} == magnitudes.keys()


def test_the_scales_of_the_release(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec())
    load_backbone_weights(model, write_npz(tmp_path / "w.npz", arrays), "vgg16", scales="paper")
    assert [weight_arrays(model)[name] for name in SCALES] == pytest.approx([0.0001, 0.01, 1])


def test_kernels_for_small_inputs_are_not_scaled_as_those_for_large_ones(
    tmp_path: Path, classifier: keras.Model
) -> None:
    model = build_fcn(tiny_spec())
    load_backbone_weights(model, write_torch(tmp_path / "w.safetensors", classifier), "vgg16")
    assert [weight_arrays(model)[name] for name in SCALES] == [1, 1, 1]


# -------------------------------------------------------------------------------------------------- the download


def test_imagenet_comes_from_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = keras.applications.VGG16(include_top=False, weights=None)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(keras.applications, "VGG16", lambda **options: asked.update(options) or theirs)
    model = build_fcn(tiny_spec(width=1.0))
    assert load_backbone_weights(model, "imagenet", "vgg16") == VGG16
    assert asked == {"include_top": False, "weights": "imagenet"}
    assert_loaded(model, weight_arrays(theirs), atol=0)


def test_imagenet_brings_the_dense_layers_when_they_fit(
    monkeypatch: pytest.MonkeyPatch, classifier: keras.Model
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(keras.applications, "VGG16", lambda **options: asked.update(options) or classifier)
    load_backbone_weights(build_fcn(tiny_spec(fc_channels=4096)), "imagenet", "vgg16")
    assert asked == {"include_top": True, "weights": "imagenet"}


@pytest.mark.parametrize(
    ("backbone", "function"),
    [("mobilenetv3_large", "MobileNetV3Large"), ("resnet50", "ResNet50")],
)
def test_imagenet_for_deep_backbones(monkeypatch: pytest.MonkeyPatch, backbone: str, function: str) -> None:
    model = build_fcn(tiny_spec(backbone=backbone, width=1.0))
    model.get_layer("fc6").filters = 4096  # as many as VGG16's dense layers have
    theirs = getattr(keras.applications, function)(weights=None, include_top=False, input_shape=(None, None, 3))
    theirs.set_weights([array + 1 for array in theirs.get_weights()])
    asked: dict[str, Any] = {}
    monkeypatch.setattr(keras.applications, function, lambda **options: asked.update(options) or theirs)
    names = load_backbone_weights(model, "imagenet", backbone)
    assert asked.pop("include_preprocessing", None) == (None if backbone == "resnet50" else False)
    assert asked == {"include_top": False, "weights": "imagenet"}
    assert names == [layer.name for layer in backbone_layers(model)]
    assert_loaded(model, weight_arrays(theirs), atol=0)
    assert [float(weight_arrays(model)[name]) for name in SCALES] == [1, 1, 1]


def test_a_deep_backbone_from_a_file_of_keras(tmp_path: Path) -> None:
    model = build_fcn(tiny_spec(backbone="mobilenetv3_small", width=1.0))
    before = weight_arrays(model)
    theirs = keras.applications.MobileNetV3Small(weights=None)
    part = {name: array + 1 for name, array in weight_arrays(theirs).items() if name != "conv_1_bn/moving_variance"}
    with pytest.raises(ConfigError, match=rf"conv_1_bn/moving_variance is missing; found {len(part)} arrays"):
        load_backbone_weights(model, write_npz(tmp_path / "w.npz", part), "mobilenetv3_small")
    assert_loaded(model, before, atol=0)
    theirs.save(tmp_path / "w.keras")
    load_backbone_weights(model, str(tmp_path / "w.keras"), "mobilenetv3_small")
    expected = weight_arrays(theirs)
    assert_loaded(model, {v.path: expected[v.path] for layer in backbone_layers(model) for v in layer.weights}, atol=0)


def test_workers_of_one_machine_download_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    model, inside = tiny_model(), threading.Lock()
    crowded: list[bool] = []

    def download(**_: object) -> keras.Model:
        crowded.append(not inside.acquire(blocking=False))
        time.sleep(0.1)  # for the others to come
        inside.release()
        raise OSError("no network")

    def load() -> None:
        with pytest.raises(ConfigError, match="no network"):
            load_backbone_weights(model, "imagenet", "vgg16")

    monkeypatch.setattr(keras.applications, "VGG16", download)
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert crowded == [False] * 3


def test_without_a_network_imagenet_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise Exception("URL fetch failure on https://example.org")

    monkeypatch.setattr(keras.applications, "VGG16", fail)
    with pytest.raises(ConfigError, match=r"URL fetch failure.*local .npz, .h5, .keras or .safetensors file"):
        load_backbone_weights(tiny_model(), "imagenet", "vgg16")


def test_keras_has_no_alexnet() -> None:
    model = build_fcn(tiny_spec(backbone="alexnet", variant="32s"))
    with pytest.raises(ConfigError, match="keras-applications has no alexnet"):
        load_backbone_weights(model, "imagenet", "alexnet")


# ------------------------------------------------------------------------------------------------ what is refused


def test_another_width_is_refused_with_both_shapes(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec(width=0.1))
    before = weight_arrays(model)
    message = r"block1_conv1/kernel has shape \(3, 3, 3, 1\), the network needs \(3, 3, 3, 6\).*model.width 1.0"
    with pytest.raises(ConfigError, match=message):
        load_backbone_weights(model, write_npz(tmp_path / "w.npz", arrays), "vgg16")
    assert_loaded(model, before, atol=0)


def test_a_missing_layer_is_named_and_nothing_is_set(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec())
    before = weight_arrays(model)
    part = {name: array for name, array in arrays.items() if name != "block5_conv3/bias"}
    with pytest.raises(ConfigError, match=r"w.npz: block5_conv3/bias is missing; found 25 arrays"):
        load_backbone_weights(model, write_npz(tmp_path / "w.npz", part), "vgg16")
    assert_loaded(model, before, atol=0)


def test_nan_is_refused_and_nothing_is_set(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec())
    before = weight_arrays(model)
    bad = arrays | {"block3_conv1/bias": np.full_like(arrays["block3_conv1/bias"], np.nan)}
    with pytest.raises(ConfigError, match="block3_conv1/bias holds NaN"):
        load_backbone_weights(model, write_npz(tmp_path / "w.npz", bad), "vgg16")
    assert_loaded(model, before, atol=0)


def test_a_file_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.npz: there is no such file"):
        load_backbone_weights(tiny_model(), "nowhere.npz", "vgg16")
