"""Classifier weights from a file, in our names and orders, with the preprocessing that they were trained with.

Three conventions are told apart by their names: keras-applications ("block1_conv1/kernel", also our own .npz files),
torchvision ("features.0.weight") and Caffe ("conv1_1/0"). Dense layers become convolutions here (paper, section 3.1).
No Keras in here: the driver checks a file before the cluster is touched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fcn_ray.config import CAFFE_PREPROCESSING, FC6_SIZE, Preprocessing
from fcn_ray.errors import ConfigError
from fcn_ray.models.weight_readers import RawArrays, read_arrays

Arrays = dict[str, NDArray[np.float32]]

Convention = Literal["keras", "torchvision", "caffe"]

IMAGENET = "imagenet"
"""The source that downloads the weights of keras-applications, which has none for AlexNet."""

TORCH_PREPROCESSING = Preprocessing(channels="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
"""torchvision's mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225) times 255."""

BVLC_PREPROCESSING = Preprocessing(channels="BGR", mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0))
"""Of Caffe's model zoo and of the paper's release (fcn.md 2.5); Caffe's first kernels read BGR."""

SIGNED_PREPROCESSING = Preprocessing(channels="RGB", mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
"""-1..1, which keras-applications puts into MobileNetV3 as its layer `rescaling`."""

PREPROCESSING: dict[str, dict[Convention, Preprocessing]] = {
    "vgg16": {"keras": CAFFE_PREPROCESSING, "torchvision": TORCH_PREPROCESSING, "caffe": BVLC_PREPROCESSING},
    "alexnet": {"keras": BVLC_PREPROCESSING, "caffe": BVLC_PREPROCESSING},
    "alexnet_torchvision": {"keras": TORCH_PREPROCESSING, "torchvision": TORCH_PREPROCESSING},
    "resnet50": {"keras": CAFFE_PREPROCESSING},
    "mobilenetv3_large": {"keras": SIGNED_PREPROCESSING},
    "mobilenetv3_small": {"keras": SIGNED_PREPROCESSING},
}
"""By backbone, the conventions whose weights fit it, and what they were trained with."""

MISFITS = {
    "alexnet": "it is Caffe's, of two groups; for torchvision's single tower set model.backbone alexnet_torchvision",
    "alexnet_torchvision": "it is torchvision's single tower; for Caffe's set model.backbone alexnet",
    "resnet50": "it is that of keras-applications, which strides in the 1x1 convolutions, torchvision's in the 3x3",
    "mobilenetv3_large": "it is that of keras-applications, which pads more below and right than torchvision's",
    "mobilenetv3_small": "it is that of keras-applications, which pads more below and right than torchvision's",
}
"""Why the other conventions do not fit a backbone."""

RELATIVES = {
    "block3_conv4/kernel": "these are VGG19's, expected VGG16's",
    "conv3_4/0": "these are VGG19's, expected VGG16's",
    "conv4_block7_1_conv/kernel": "these are a deeper ResNet's, expected ResNet50's",
    "scale_pool5/factor": "these are a bundle's, expected a classifier's; set model.start to the folder of the bundle",
}
"""Names that give away another network which has all the layers that we look for, and would load."""

LAYERS: dict[str, dict[str, int]] = {
    "vgg16": {
        f"block{block}_conv{i}": channels
        for block, (n, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1)
        for i in range(1, n + 1)
    },
    "alexnet": {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256},
    "alexnet_torchvision": {"conv1": 64, "conv2": 192, "conv3": 384, "conv4": 256, "conv5": 256},
    "resnet50": {"conv1_conv": 64, "conv5_block3_3_conv": 2048},
    "mobilenetv3_large": {"conv": 16, "expanded_conv_14_project": 160},
    "mobilenetv3_small": {"conv": 16, "expanded_conv_10_project": 96},
}
"""Convolutions from the image on and their published output channels; of the deep networks the first and the last."""

TORCH_INDICES = {
    "vgg16": ((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (0, 3)),
    "alexnet_torchvision": ((0, 3, 6, 8, 10), (1, 4)),
}
"""Places of the convolutions in torchvision's `features`, and of fc6 and fc7 in its `classifier`."""

SUFFIXES: dict[Convention, tuple[str, str]]
SUFFIXES = {"keras": ("/kernel", "/bias"), "torchvision": (".weight", ".bias"), "caffe": ("/0", "/1")}
"""Ends of the names of kernel and bias."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a weight file holds for a backbone."""

    arrays: Arrays
    """Finite float32 by "<layer>/<variable>": kernels (height, width, in, out), biases and BatchNormalization's (out,).
    Names of keras-applications (AlexNet: conv1 to conv5); the dense layers are the convolutions fc6 and fc7."""
    preprocessing: Preprocessing
    convention: Convention


def check_weights(source: str | None, backbone: str) -> Preprocessing:
    """The preprocessing that goes with `source`, once it is sure that the published `backbone` can start from it.

    Reads the whole file and keeps nothing; of "imagenet" nothing is read, and without a source it is the default.
    Raises ConfigError as `read_weights` does, and when layers have other channels than the published ones.
    """
    if source is None:
        return Preprocessing()
    if source == IMAGENET and backbone.startswith("alexnet"):
        kind = "torchvision" if backbone in TORCH_INDICES else "Caffe"
        raise ConfigError(
            f"model.weights imagenet: keras-applications has no {backbone}; give a .npz, .h5 or .safetensors file of "
            f"{kind} weights, or null"
        )
    if source == IMAGENET:
        return PREPROCESSING[backbone]["keras"]
    weights = read_weights(source, backbone)
    for layer, channels in LAYERS[backbone].items():
        if (found := weights.arrays[f"{layer}/kernel"].shape[-1]) != channels:
            raise ConfigError(
                f"model.weights {source}: {layer} has {found} channels, {backbone} has {channels}; "
                "give another file, or set model.backbone to the network that it is of"
            )
    return weights.preprocessing


def read_weights(source: str, backbone: str) -> Weights:
    """The weights in the file `source` for `backbone`.

    Raises ConfigError when the file cannot be read, follows no convention that fits the backbone, lacks one of its
    layers, or holds values that are not finite. Shapes are those of the file: load_backbone_weights compares them.
    """
    return convert_weights(read_arrays(source), backbone, source)


def convert_weights(raw: RawArrays, backbone: str, source: str) -> Weights:
    """The weights among the arrays `raw`, which came from `source`. Raises ConfigError as `read_weights` does."""
    try:
        convention = _recognise(raw)
        if convention not in PREPROCESSING[backbone]:
            raise ValueError(f"these are {convention} weights, which {backbone} cannot take: {MISFITS[backbone]}")
        for name in RELATIVES.keys() & raw.keys():
            raise ValueError(RELATIVES[name])
        arrays = _paper_arrays(raw, backbone, convention) if backbone in FC6_SIZE else _deep_arrays(raw, backbone)
        arrays = {name: _as_float32(name, array) for name, array in arrays.items()}
    except ValueError as error:
        raise ConfigError(f"model.weights {source}: {error}") from error
    return Weights(arrays, PREPROCESSING[backbone][convention], convention)


def _recognise(raw: RawArrays) -> Convention:
    for convention, (kernel, _) in SUFFIXES.items():
        if any(name.endswith(kernel) for name in raw):
            return convention
    raise ValueError(
        f"found {len(raw)} arrays ({sorted(raw)[:4]}); expected the names of keras-applications (block1_conv1/kernel), "
        "torchvision (features.0.weight) or Caffe (conv1_1/0); rename them, or give another file"
    )


def _get(raw: RawArrays, name: str) -> NDArray[Any]:
    if name not in raw:
        raise ValueError(f"{name} is missing; found {len(raw)} arrays ({sorted(raw)[:4]}). Give another file or null")
    return raw[name]


# ------------------------------------------------------------------------------------------------- names and orders


def _paper_arrays(raw: RawArrays, backbone: str, convention: Convention) -> RawArrays:
    """Convolutions of VGG16 or AlexNet, and fc6 and fc7 when `raw` has both; never the layer of the 1000 classes."""
    kernel_end, bias_end = SUFFIXES[convention]
    theirs = _their_names(raw, backbone, convention)
    if not all(theirs[layer] + end in raw for layer in ("fc6", "fc7") for end in (kernel_end, bias_end)):
        del theirs["fc6"], theirs["fc7"]
    arrays, channels = RawArrays(), 0
    for layer, name in theirs.items():
        kernel = _get(raw, name + kernel_end)
        if layer.startswith("fc"):
            size = FC6_SIZE[backbone] if layer == "fc6" else 1
            kernel = _dense_as_convolution(kernel, convention, (size, size, channels), name + kernel_end)
        elif kernel.ndim != 4:
            raise ValueError(f"{name}{kernel_end} has shape {kernel.shape}, expected the 4 axes of a convolution")
        elif convention != "keras":
            kernel = kernel.transpose(2, 3, 1, 0)  # (out, in, height, width)
        arrays[f"{layer}/kernel"] = kernel
        arrays[f"{layer}/bias"] = _get(raw, name + bias_end).reshape(-1)  # Caffe before 2015: (1, 1, 1, out)
        channels = kernel.shape[-1]
    return arrays


def _their_names(raw: RawArrays, backbone: str, convention: Convention) -> dict[str, str]:
    """What the convention calls each of our layers, from the image on."""
    ours = [*LAYERS[backbone], "fc6", "fc7"]
    if convention == "torchvision":
        features, classifier = TORCH_INDICES[backbone]
        theirs = [f"features.{i}" for i in features] + [f"classifier.{i}" for i in classifier]
        return dict(zip(ours, theirs, strict=True))
    if convention == "caffe":
        return {layer: re.sub(r"block(\d)_conv(\d)", r"conv\1_\2", layer) for layer in ours}
    dense = {"fc6": "fc1", "fc7": "fc2"} if "fc1/kernel" in raw else {}
    return {layer: dense.get(layer, layer) for layer in ours}


def _dense_as_convolution(
    array: NDArray[Any], convention: Convention, cells: tuple[int, int, int], name: str
) -> NDArray[Any]:
    """Kernel (height, width, in, out) of a dense layer that reads `cells` (height, width, channels).

    Keras flattens (height, width, channels) and stores (in, out); Caffe and torch flatten (channels, height, width) and
    store (out, in), for which a plain reshape gives wrong scores (fcn.md R3). An array of 4 axes is a kernel already.
    """
    height, width, channels = cells
    inputs = height * width * channels
    outputs = array.size // max(1, inputs)
    if convention == "keras":
        shapes = [(*cells, outputs), (inputs, outputs)]
    else:
        shapes = [(outputs, channels, height, width), (outputs, inputs), (1, 1, outputs, inputs)]  # last: before 2015
    if array.shape not in shapes:
        raise ValueError(
            f"{name} has shape {array.shape}, expected {shapes[1]} or {shapes[0]}. Was the classifier made for another "
            "size of image? Then leave its dense layers out"
        )
    kernel = array.reshape(shapes[0])
    return kernel if convention == "keras" else kernel.transpose(2, 3, 1, 0)


def _deep_arrays(raw: RawArrays, backbone: str) -> RawArrays:
    """Those of keras-applications; MobileNetV3 was published with names such as expanded_conv/depthwise/BatchNorm."""
    arrays = {}
    for name, array in raw.items():
        layer, _, variable = name.rpartition("/")
        layer = layer.lower().replace("/batchnorm", "_bn").replace("/", "_")
        arrays[f"{layer}/{variable.removeprefix('depthwise_')}"] = array
    for layer in LAYERS[backbone]:
        _get(arrays, f"{layer}/kernel")
    return arrays


def _as_float32(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype.kind != "f":
        raise ValueError(f"{name} is {array.dtype}, expected floating-point numbers; give a file without quantisation")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values; get the file again")
    return array
