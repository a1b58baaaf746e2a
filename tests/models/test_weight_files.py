"""Whatever convention a file follows, the same numbers come out under our names, in our orders; the rest is refused."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fcn_ray.config import CAFFE_PREPROCESSING, FC6_SIZE, Preprocessing
from fcn_ray.errors import ConfigError
from fcn_ray.models.weight_files import LAYERS, check_weights, convert_weights, read_weights

Arrays = dict[str, np.ndarray]

GROUPS = {"conv2": 2, "conv4": 2, "conv5": 2}
"""Of Caffe's AlexNet."""

TORCH = {"vgg16": ("0 2 5 7 10 12 14 17 19 21 24 26 28", "0 3 6"), "alexnet_torchvision": ("0 3 6 8 10", "1 4 6")}
"""Places of the layers with weights in torchvision's `features` and `classifier` (printed by torchvision)."""

KINDS = [(b, k) for b in ("vgg16", "alexnet", "alexnet_torchvision") for k in ("keras", "torchvision", "caffe")]
FITTING = [kind for kind in KINDS if kind not in {("alexnet", "torchvision"), ("alexnet_torchvision", "caffe")}]


def a_classifier(backbone: str, channels: int = 4, outputs: int = 8) -> Arrays:
    """Random arrays in our names and orders, with dense layers; every layer has other numbers."""
    rng = np.random.default_rng(11)
    arrays, inputs = {}, 3
    for layer in LAYERS[backbone]:
        groups = GROUPS.get(layer, 1) if backbone == "alexnet" else 1
        arrays[f"{layer}/kernel"] = rng.normal(size=(3, 3, inputs // groups, channels)).astype(np.float32)
        arrays[f"{layer}/bias"] = rng.normal(size=channels).astype(np.float32)
        inputs = channels
    size = FC6_SIZE[backbone]
    for layer, shape in {"fc6": (size, size, channels, outputs), "fc7": (1, 1, outputs, outputs)}.items():
        arrays[f"{layer}/kernel"] = rng.normal(size=shape).astype(np.float32)
        arrays[f"{layer}/bias"] = rng.normal(size=outputs).astype(np.float32)
    return arrays


def as_stored(ours: Arrays, backbone: str, convention: str) -> Arrays:
    """The same classifier as `convention` names and orders it, with a last layer of 10 classes."""
    layers = list(dict.fromkeys(name.partition("/")[0] for name in ours))
    scores = {"keras": "predictions", "caffe": "fc8"}.get(convention, "fc8")
    ours = ours | {f"{scores}/kernel": np.ones((1, 1, 8, 10), np.float32), f"{scores}/bias": np.ones(10, np.float32)}
    layers.append(scores)
    if convention == "keras":
        dense = {"fc6": "fc1", "fc7": "fc2"}
        stored = {}
        for name, array in ours.items():
            layer, variable = name.split("/")
            flat = layer in {*dense, scores} and variable == "kernel"
            stored[f"{dense.get(layer, layer)}/{variable}"] = array.reshape(-1, array.shape[-1]) if flat else array
        return stored
    if convention == "torchvision":
        features, classifier = (part.split() for part in TORCH[backbone])
        names = [f"features.{i}." for i in features] + [f"classifier.{i}." for i in classifier]
    else:
        names = [re.sub(r"block(\d)_conv(\d)", r"conv\1_\2", layer) + "/" for layer in layers]
    ends = ("weight", "bias") if convention == "torchvision" else ("0", "1")
    stored = {}
    for layer, name in zip(layers, names, strict=True):
        kernel = ours[f"{layer}/kernel"].transpose(3, 2, 0, 1)  # (out, in, height, width)
        stored[name + ends[0]] = kernel.reshape(len(kernel), -1) if layer.startswith("fc") else kernel
        stored[name + ends[1]] = ours[f"{layer}/bias"]
    return stored


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert (found[name].dtype, found[name].flags.c_contiguous) == (np.float32, True)


def test_the_driver_needs_no_keras() -> None:
    code = "import sys, fcn_ray.models.weight_files; print({'keras', 'tensorflow', 'ray'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# -------------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize(("backbone", "convention"), FITTING)
def test_every_convention_gives_the_same_arrays(backbone: str, convention: str) -> None:
    ours = a_classifier(backbone)
    weights = convert_weights(as_stored(ours, backbone, convention), backbone, "w.npz")
    assert_equal(weights.arrays, ours)
    assert weights.convention == convention


@pytest.mark.parametrize(("backbone", "convention"), FITTING)
def test_dense_layers_may_be_missing(backbone: str, convention: str) -> None:
    ours = a_classifier(backbone)
    stored = as_stored(ours, backbone, convention)
    fc7 = [name for name in stored if stored[name].shape[-2:] == (8, 8)]
    assert len(fc7) == 1
    del stored[fc7[0]]
    features = {name: array for name, array in ours.items() if not name.startswith("fc")}
    assert_equal(convert_weights(stored, backbone, "w.npz").arrays, features)


@pytest.mark.parametrize(("backbone", "convention"), FITTING)
def test_layers_that_are_convolutions_already(backbone: str, convention: str) -> None:
    """A converted classifier of Keras, torch or Caffe, such as the release's; in Keras with either name."""
    ours = a_classifier(backbone)
    stored = as_stored(ours, backbone, convention)
    dense = [name for name, array in stored.items() if array.ndim == 2]
    for layer, name in zip(("fc6", "fc7"), dense[:2], strict=True):
        if convention == "keras":
            del stored[name]
            stored |= {f"{layer}/kernel": ours[f"{layer}/kernel"], f"{layer}/bias": ours[f"{layer}/bias"]}
        else:
            stored[name] = ours[f"{layer}/kernel"].transpose(3, 2, 0, 1)
    assert_equal(convert_weights(stored, backbone, "w.npz").arrays, ours)


@pytest.mark.parametrize("backbone", ["vgg16", "alexnet"])
def test_caffe_before_2015_had_four_axes_everywhere(backbone: str) -> None:
    ours = a_classifier(backbone)
    stored = {n: a.reshape((1,) * (4 - a.ndim) + a.shape) for n, a in as_stored(ours, backbone, "caffe").items()}
    assert stored["fc6/0"].shape[:2] == (1, 1)
    assert stored["fc6/1"].shape == (1, 1, 1, 8)
    assert_equal(convert_weights(stored, backbone, "w.npz").arrays, ours)


@pytest.mark.parametrize(("convention", "size"), [("keras", 7), ("torchvision", 7), ("caffe", 7), ("caffe", 6)])
def test_fc6_is_the_dense_layer(convention: str, size: int) -> None:
    """R3, R4: the convolution's cell has the scores of the dense layer; a plain reshape of torch's order has not."""
    backbone = {7: "vgg16", 6: "alexnet"}[size]
    rng = np.random.default_rng(2)
    features = rng.normal(size=(size, size, 4))  # height, width, channels
    stored = as_stored(a_classifier(backbone), backbone, convention)
    if convention == "keras":
        scores = features.ravel() @ stored["fc1/kernel"]
        wrong = stored["fc1/kernel"].reshape(4, size, size, 8).transpose(1, 2, 0, 3)
    else:
        dense = stored["classifier.0.weight" if convention == "torchvision" else "fc6/0"]
        scores = dense @ features.transpose(2, 0, 1).ravel()
        wrong = dense.T.reshape(size, size, 4, 8)
    kernel = convert_weights(stored, backbone, "w.npz").arrays["fc6/kernel"]
    np.testing.assert_allclose(np.tensordot(features, kernel, 3), scores, atol=1e-4)
    assert np.abs(np.tensordot(features, wrong, 3) - scores).max() > 1


def test_half_and_double_precision_become_single() -> None:
    ours = a_classifier("vgg16")
    for dtype in (np.float16, np.float64):
        stored = {name: array.astype(dtype) for name, array in as_stored(ours, "vgg16", "torchvision").items()}
        arrays = convert_weights(stored, "vgg16", "w.npz").arrays
        np.testing.assert_allclose(arrays["fc6/kernel"], ours["fc6/kernel"], atol=3e-3)
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_mobilenetv3_as_published_and_as_it_is_called_today() -> None:
    today = {
        "conv/kernel": np.zeros((3, 3, 3, 16)),
        "conv_bn/moving_variance": np.ones(16),
        "expanded_conv_depthwise/kernel": np.zeros((3, 3, 16, 1)),
        "expanded_conv_squeeze_excite_conv_1/bias": np.zeros(16),
        "expanded_conv_10_project/kernel": np.zeros((1, 1, 576, 96)),
        "expanded_conv_10_project_bn/gamma": np.zeros(96),
        "conv_1/kernel": np.zeros((1, 1, 96, 576)),
    }
    published = {
        "Conv/kernel": today["conv/kernel"],
        "Conv/BatchNorm/moving_variance": today["conv_bn/moving_variance"],
        "expanded_conv/depthwise/depthwise_kernel": today["expanded_conv_depthwise/kernel"],
        "expanded_conv/squeeze_excite/Conv_1/bias": today["expanded_conv_squeeze_excite_conv_1/bias"],
        "expanded_conv_10/project/kernel": today["expanded_conv_10_project/kernel"],
        "expanded_conv_10/project/BatchNorm/gamma": today["expanded_conv_10_project_bn/gamma"],
        "Conv_1/kernel": today["conv_1/kernel"],
    }
    for stored in (today, published):
        assert_equal(convert_weights(stored, "mobilenetv3_small", "w.h5").arrays, today)
    with pytest.raises(ConfigError, match="expanded_conv_14_project/kernel is missing"):
        convert_weights(today, "mobilenetv3_large", "w.h5")


# ------------------------------------------------------------------------------------------------ preprocessing


def test_the_preprocessing_is_that_of_the_training() -> None:
    torch = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    caffe = Preprocessing(channels="BGR", mean=(104.00699, 116.66877, 122.67892), std=(1, 1, 1))
    expected = {
        ("vgg16", "keras"): CAFFE_PREPROCESSING,
        ("vgg16", "torchvision"): torch,
        ("vgg16", "caffe"): caffe,
        ("alexnet", "keras"): caffe,
        ("alexnet", "caffe"): caffe,
        ("alexnet_torchvision", "keras"): torch,
        ("alexnet_torchvision", "torchvision"): torch,
    }
    assert set(expected) == set(FITTING)
    for (backbone, convention), preprocessing in expected.items():
        stored = as_stored(a_classifier(backbone), backbone, convention)
        assert convert_weights(stored, backbone, "w.npz").preprocessing == preprocessing


def test_the_preprocessing_without_a_file() -> None:
    assert check_weights(None, "vgg16") == Preprocessing()
    assert check_weights("imagenet", "vgg16") == check_weights("imagenet", "resnet50") == CAFFE_PREPROCESSING
    for backbone in ("mobilenetv3_large", "mobilenetv3_small"):
        assert check_weights("imagenet", backbone) == Preprocessing(std=(127.5, 127.5, 127.5))
    with pytest.raises(ConfigError, match=r"imagenet: keras-applications has no alexnet; give .* of Caffe weights"):
        check_weights("imagenet", "alexnet")
    with pytest.raises(ConfigError, match=r"no alexnet_torchvision; give .* of torchvision weights"):
        check_weights("imagenet", "alexnet_torchvision")


def _published(backbone: str) -> Arrays:
    arrays, inputs = {}, 3
    for layer, channels in LAYERS[backbone].items():
        arrays[f"{layer}/kernel"] = np.zeros((3, 3, inputs, channels), np.float16)
        arrays[f"{layer}/bias"] = np.zeros(channels, np.float16)
        inputs = channels
    return arrays


def test_a_file_is_checked_before_the_job_starts(tmp_path: Path) -> None:
    single_tower = _published("alexnet_torchvision")
    np.savez_compressed(tmp_path / "w.npz", **single_tower)
    source = str(tmp_path / "w.npz")
    assert check_weights(source, "alexnet_torchvision").std == (58.395, 57.12, 57.375)
    with pytest.raises(ConfigError, match=r"w.npz: conv1 has 64 channels, alexnet has 96; .* set model.backbone"):
        check_weights(source, "alexnet")
    with pytest.raises(ConfigError, match=r"w.npz: block1_conv1/kernel is missing; found 10 arrays \(\['conv1/bias'"):
        check_weights(source, "vgg16")
    safetensors.numpy.save_file(as_stored(a_classifier("vgg16"), "vgg16", "torchvision"), tmp_path / "w.safetensors")
    assert read_weights(str(tmp_path / "w.safetensors"), "vgg16").convention == "torchvision"
    with pytest.raises(ConfigError, match="block1_conv1 has 4 channels, vgg16 has 64"):
        check_weights(str(tmp_path / "w.safetensors"), "vgg16")


# ------------------------------------------------------------------------------------------------ what is refused


def _refused(backbone: str, stored: Arrays, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^model.weights w.npz: {message}"):
        convert_weights(stored, backbone, "w.npz")


def test_conventions_that_do_not_fit_are_refused_with_the_reason() -> None:
    tower = as_stored(a_classifier("alexnet_torchvision"), "alexnet_torchvision", "torchvision")
    _refused("alexnet", tower, ".*torchvision weights.*single tower set model.backbone alexnet_torchvision")
    groups = as_stored(a_classifier("alexnet"), "alexnet", "caffe")
    _refused("alexnet_torchvision", groups, ".*caffe weights.* for Caffe's set model.backbone alexnet")
    torch = {"conv1.weight": np.zeros((64, 3, 7, 7)), "layer1.0.bn1.running_mean": np.zeros(64)}
    _refused("resnet50", torch, ".*torchvision weights, which resnet50 cannot take: .* 1x1 .*torchvision's in the 3x3")
    _refused("resnet50", {"res2a_branch2a/0": np.zeros((64, 64, 1, 1))}, "these are caffe weights")
    for backbone in ("mobilenetv3_large", "mobilenetv3_small"):
        _refused(backbone, {"features.0.0.weight": np.zeros((16, 3, 3, 3))}, ".*pads more below and right than torch")


@pytest.mark.parametrize(
    ("backbone", "convention", "extra", "message"),
    [
        ("vgg16", "keras", "block3_conv4/kernel", "these are VGG19's"),
        ("vgg16", "caffe", "conv3_4/0", "these are VGG19's"),
        ("vgg16", "keras", "scale_pool5/factor", "these are a bundle's.* set model.start"),
    ],
)
def test_larger_relatives_would_load_and_are_refused(backbone: str, convention: str, extra: str, message: str) -> None:
    stored = as_stored(a_classifier(backbone), backbone, convention)
    _refused(backbone, stored | {extra: np.zeros((3, 3, 4, 4))}, message)


def test_a_deeper_resnet_is_refused() -> None:
    ours = {"conv1_conv/kernel": np.zeros((7, 7, 3, 64)), "conv5_block3_3_conv/kernel": np.zeros((1, 1, 512, 2048))}
    assert convert_weights(ours, "resnet50", "w.npz").preprocessing == CAFFE_PREPROCESSING
    deeper: Arrays = ours | {"conv4_block7_1_conv/kernel": np.zeros((1, 1, 1024, 256))}
    _refused("resnet50", deeper, "these are a deeper ResNet's")


def test_names_of_no_convention_are_shown() -> None:
    stored = {f"conv1_{i}_W": np.zeros((3, 3, 3, 4)) for i in range(6)}
    _refused("vgg16", stored, r"found 6 arrays \(\['conv1_0_W', 'conv1_1_W'.*expected the names of keras-applications")
    _refused("vgg16", {}, r"found 0 arrays \(\[\]\)")


@pytest.mark.parametrize(("backbone", "convention"), FITTING)
@pytest.mark.parametrize("end", [0, 1])
def test_a_missing_array_is_named_as_the_file_would(backbone: str, convention: str, end: int) -> None:
    stored = as_stored(a_classifier(backbone), backbone, convention)
    name = list(stored)[2 * (len(LAYERS[backbone]) - 1) + end]
    del stored[name]
    _refused(backbone, stored, f"{re.escape(name)} is missing; found {len(stored)} arrays")


@pytest.mark.parametrize(("backbone", "convention"), FITTING)
def test_dense_layers_for_another_size_of_image_are_refused(backbone: str, convention: str) -> None:
    ours = a_classifier(backbone)
    ours["fc6/kernel"] = np.zeros((8, 8, 4, 8), np.float32)
    stored = as_stored(ours, backbone, convention)
    _refused(backbone, stored, r".* has shape \(.*256.*\), expected \(.*Was the classifier made for another size")


def _with(change: Any) -> Arrays:
    stored = as_stored(a_classifier("vgg16"), "vgg16", "torchvision")
    stored["features.5.weight"] = change(stored["features.5.weight"])
    return stored


def test_wrong_values_are_refused() -> None:
    _refused("vgg16", _with(lambda a: np.full_like(a, np.nan)), "block2_conv1/kernel holds NaN or infinite values")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _refused("vgg16", _with(lambda a: a.astype(np.float64) * 1e300), "block2_conv1/kernel holds NaN or infinite")
    _refused("vgg16", _with(lambda a: a.astype(np.int8)), "block2_conv1/kernel is int8, expected floating-point")
    _refused("vgg16", _with(lambda a: a.ravel()), r"features.5.weight has shape \(144,\), expected the 4 axes")
    _refused("vgg16", _with(lambda a: np.float32(1)), r"features.5.weight has shape \(\), expected the 4 axes")
    stored = as_stored(a_classifier("vgg16"), "vgg16", "torchvision")
    _refused("vgg16", stored | {"classifier.0.weight": np.array(0.0)}, r"classifier.0.weight has shape \(\), expected")
    _refused("vgg16", stored | {"features.28.weight": np.zeros((0, 4, 3, 3))}, r"classifier.0.weight has shape \(8, 19")
