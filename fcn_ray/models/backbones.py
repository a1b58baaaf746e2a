"""Backbones: classifiers without their dense layers. Each returns its features by stride {8, 16, 32}.

A new backbone is one function and one entry in BACKBONES. Layers carry the names of keras-applications, so that its
weight files fit (fcn_ray.models.weights).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import keras

from fcn_ray.models.layers import Tensor

Features = dict[int, Tensor]
"""Feature map by stride: features[s] has shape (N, H / s, W / s, channels) for inputs (N, H, W, 3)."""

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of every convolution, by block (Simonyan & Zisserman 2015, table 1, column D)."""


def seed_of(name: str, seed: int) -> int:
    """A seed for the layer `name`, so that no two layers draw the same numbers, in whatever order they are built."""
    return zlib.crc32(f"{seed}/{name}".encode())


def he_normal(name: str, seed: int) -> keras.initializers.Initializer:
    """Normal kernel of variance 2 / fan-in, which keeps the magnitude through a ReLU (He et al. 2015)."""
    return keras.initializers.HeNormal(seed=seed_of(name, seed))


def scaled(channels: int, width: float) -> int:
    """Channels of a layer in a network that is `width` times as wide, at least 1."""
    return max(1, round(channels * width))


def vgg16(inputs: Tensor, width: float, *, seed: int = 0, dtype: str = "float32") -> Features:
    """VGG16 up to pool5: 13 3x3 convolutions with ReLU, a 2x2 max pool after each block.

    `inputs` is (N, H, W, 3), normalised, H and W multiples of 32. `dtype` is a Keras dtype policy; the features have
    its compute dtype. Features: pool3 at stride 8, pool4 at 16, pool5 at 32, with 256, 512, 512 times `width` channels.
    """
    features, x, stride = {}, inputs, 1
    for block, layers in enumerate(VGG16_BLOCKS, start=1):
        for index, channels in enumerate(layers, start=1):
            name = f"block{block}_conv{index}"
            x = keras.layers.Conv2D(
                scaled(channels, width),
                3,
                padding="same",
                activation="relu",
                kernel_initializer=he_normal(name, seed),
                dtype=dtype,
                name=name,
            )(x)
        x = keras.layers.MaxPooling2D(2, dtype=dtype, name=f"block{block}_pool")(x)
        stride *= 2
        features[stride] = x
    return {stride: features[stride] for stride in (8, 16, 32)}


BACKBONES: dict[str, Callable[..., Features]] = {"vgg16": vgg16}
"""Backbone by the name that a ModelSpec gives it."""
