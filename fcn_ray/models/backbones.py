"""Backbones: classifiers without their dense layers. Each returns its features by stride {8, 16, 32}.

A new backbone is one function and one entry in BACKBONES. Layers carry the names of keras-applications (AlexNet: conv1
to conv5, as in Caffe), so that weight files fit (fcn_ray.models.weights).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from fcn_ray.config import STRIDE, Architecture
from fcn_ray.models.layers import CeilMaxPooling, GroupedConv2D, LocalResponseNormalization, Tensor

Features = dict[int, Tensor]
"""Feature map by stride: features[s] has shape (N, H / s, W / s, channels) for inputs (N, H, W, 3)."""

PAPER_PAD = 100
"""Zeros around the image in the release: enough that every image has a cell, and every crop fits."""

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of every convolution, by block (Simonyan & Zisserman 2015, table 1, column D)."""


def seed_of(name: str, seed: int | None) -> int:
    """A seed for the layer `name`, so that no two layers draw the same numbers, in whatever order they are built."""
    return zlib.crc32(f"{seed}/{name}".encode())


def he_normal(name: str, seed: int | None) -> keras.initializers.Initializer:
    """Normal kernel of variance 2 / fan-in, which keeps the magnitude through a ReLU (He et al. 2015).

    Zeros without a `seed`, for weights that are about to be set: to draw VGG16's takes seconds, and JAX compiles a
    program for every shape that it draws.
    """
    if seed is None:
        return keras.initializers.Zeros()
    return keras.initializers.HeNormal(seed=seed_of(name, seed))


def scaled(channels: int, width: float, groups: int = 1) -> int:
    """Channels of a layer in a network that is `width` times as wide: a multiple of `groups`, at least one each."""
    return max(1, round(channels * width / groups)) * groups


def vgg16(inputs: Tensor, spec: Architecture, *, seed: int | None = 0, dtype: str = "float32") -> Features:
    """VGG16 up to pool5: 13 3x3 convolutions with ReLU, a 2x2 max pool after each block.

    `inputs` is (N, H, W, 3), normalised; in geometry "same" H and W are multiples of 32. `dtype` is a Keras dtype
    policy; the features have its compute dtype. Features: pool3 at stride 8, pool4 at 16, pool5 at 32, with 256, 512,
    512 times `spec.width` channels. In geometry "paper" the first convolution pads by 100 instead of 1 (release,
    voc-fcn8s/net.py).
    """
    features, x, stride = {}, inputs, 1
    if spec.geometry == "paper":
        x = keras.layers.ZeroPadding2D(PAPER_PAD, dtype=dtype, name="block1_conv1_pad")(x)
    for block, layers in enumerate(VGG16_BLOCKS, start=1):
        for index, channels in enumerate(layers, start=1):
            name = f"block{block}_conv{index}"
            x = keras.layers.Conv2D(
                scaled(channels, spec.width),
                3,
                padding="valid" if name == "block1_conv1" and spec.geometry == "paper" else "same",
                activation="relu",
                kernel_initializer=he_normal(name, seed),
                dtype=dtype,
                name=name,
            )(x)
        # "same" for 2x2 is Caffe's rule: a last odd cell has a window of its own.
        x = keras.layers.MaxPooling2D(2, padding="same", dtype=dtype, name=f"block{block}_pool")(x)
        stride *= 2
        features[stride] = x
    return {stride: features[stride] for stride in (8, 16, 32)}


def alexnet(
    inputs: Tensor,
    spec: Architecture,
    *,
    single_tower: bool = False,
    pad: tuple[int, int] | None = None,
    seed: int | None = 0,
    dtype: str = "float32",
) -> Features:
    """AlexNet up to pool5: 5 convolutions with ReLU, 3x3 max pools of stride 2 after the first, second and fifth.

    The network of the paper (Krizhevsky et al. 2012, in the order of the release's voc-fcn-alexnet/net.py): 96, 256,
    384, 384, 256 channels, the second, fourth and fifth convolution in two groups, local response normalisation behind
    the first two pools. `single_tower`: torchvision's, 64, 192, 384, 256, 256 channels, no groups, no normalisation.

    `pad` = zeros before and after conv1; by default 100 in geometry "paper", else 2 and 5, which make every stride
    divide the grid. Features: pool1 at stride 8, pool2 at 16, pool5 at 32; see `vgg16` for the rest.
    """
    widths = (64, 192, 384, 256, 256) if single_tower else (96, 256, 384, 384, 256)
    groups = (1, 1, 1, 1, 1) if single_tower else (1, 2, 1, 2, 2)
    before, after = pad or ((PAPER_PAD, PAPER_PAD) if spec.geometry == "paper" else (2, 5))
    x = keras.layers.ZeroPadding2D(((before, after), (before, after)), dtype=dtype, name="conv1_pad")(inputs)
    pools = {}
    for index, (channels, parts, side) in enumerate(zip(widths, groups, (11, 5, 3, 3, 3), strict=True), start=1):
        x = GroupedConv2D(
            scaled(channels, spec.width, max(groups)),
            side,
            strides=4 if index == 1 else 1,
            padding="valid" if index == 1 else "same",
            groups=parts,
            activation="relu",
            kernel_initializer=he_normal(f"conv{index}", seed),
            dtype=dtype,
            name=f"conv{index}",
        )(x)
        if index in (1, 2, 5):
            x = pools[index] = CeilMaxPooling(3, 2, dtype=dtype, name=f"pool{index}")(x)
        if index in (1, 2) and not single_tower:
            x = LocalResponseNormalization(dtype=dtype, name=f"norm{index}")(x)
    return {8: pools[1], 16: pools[2], 32: pools[5]}


def resnet50(inputs: Tensor, spec: Architecture, *, seed: int | None = 0, dtype: str = "float32") -> Features:
    """ResNet50 (He et al. 2015) of keras-applications: its stages conv3, conv4, conv5 at strides 8, 16, 32.

    512, 1024, 2048 channels. With `spec.output_stride` 16 the last stage dilates by 2 instead of striding, so that its
    features replace those of conv4 at stride 16 (Chen et al. 2017, "Rethinking atrous convolution").
    """

    def dilate(name: str, config: dict[str, Any]) -> None:
        if name.startswith("conv5_") and spec.output_stride == 16:
            if name.endswith("_2_conv"):
                config["dilation_rate"] = 2
            elif "strides" in config:
                config["strides"] = 1

    application = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(None, None, 3))
    network = _rebuild(application, inputs, seed, dtype, dilate)
    stages = {8: "conv3_block4_out", 16: "conv4_block6_out", spec.output_stride: "conv5_block3_out"}
    return {stride: network.get_layer(name).output for stride, name in stages.items()}


def mobilenetv3(
    inputs: Tensor, spec: Architecture, *, large: bool, seed: int | None = 0, dtype: str = "float32"
) -> Features:
    """MobileNetV3 (Howard et al. 2019) of keras-applications, of `spec.width`: its last blocks at strides 8 and 16, and
    its last convolution at 32.

    Its squeeze-and-excitation blocks average over the whole image: such a network is not predicted in tiles.
    """
    build = keras.applications.MobileNetV3Large if large else keras.applications.MobileNetV3Small
    application = build(
        input_shape=(None, None, 3), alpha=spec.width, include_top=False, weights=None, include_preprocessing=False
    )
    network = _rebuild(application, inputs, seed, dtype, lambda name, config: None)
    blocks = (5, 11) if large else (2, 7)
    names = {stride: f"expanded_conv_{block}_add" for stride, block in zip((8, 16), blocks, strict=True)}
    names[STRIDE] = application.layers[-1].name
    # Not network.output: Keras copies the graph of a model that begins at an inner tensor.
    return {stride: network.get_layer(name).output for stride, name in names.items()}


def _rebuild(
    application: keras.Model,
    inputs: Tensor,
    seed: int | None,
    dtype: str,
    change: Callable[[str, dict[str, Any]], None],
) -> keras.Model:
    """The network of keras-applications on `inputs`, in the policy `dtype`, with kernels drawn from `seed`.

    `change(name, config)` may edit the configuration of each layer before it is built again.
    """
    # Workers see different images: without it each would keep statistics of its own (TensorFlow is all that trains).
    synchronized = keras.backend.backend() == "tensorflow"

    def copy(layer: keras.Operation) -> keras.Operation:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # the others are plain operations, of the dtype of their inputs
            config["dtype"] = dtype
        for key in ("kernel_initializer", "depthwise_initializer"):
            if config.get(key) and seed is None:
                config[key] = "zeros"
            elif config.get(key):
                config[key]["config"]["seed"] = seed_of(layer.name, seed)
        if isinstance(layer, keras.layers.BatchNormalization):
            config["synchronized"] = synchronized
        change(layer.name, config)
        return type(layer).from_config(config)

    return keras.models.clone_model(application, input_tensors=inputs, clone_function=copy)


BACKBONES: dict[str, Callable[..., Features]] = {
    "vgg16": vgg16,
    "alexnet": alexnet,
    "alexnet_torchvision": partial(alexnet, single_tower=True),
    "resnet50": resnet50,
    "mobilenetv3_large": partial(mobilenetv3, large=True),
    "mobilenetv3_small": partial(mobilenetv3, large=False),
}
"""Backbone by the name that a ModelSpec gives it."""
