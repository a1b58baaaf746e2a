"""The classifiers that the paper starts from, with their dense layers: what `convolutionalize` takes."""

from __future__ import annotations

from typing import Literal

import keras

from fcn_ray.config import Architecture
from fcn_ray.models.backbones import alexnet, he_normal


def build_classifier(
    name: Literal["vgg16", "alexnet", "alexnet_torchvision"],
    num_classes: int = 1000,
    *,
    width: float = 1.0,
    seed: int = 0,
) -> keras.Model:
    """Normalised float32 images (N, S, S, 3) -> class scores before the softmax (N, num_classes), random weights.

    S = 224 for VGG16 (keras-applications; only width 1) and torchvision's AlexNet, 227 for AlexNet. The first dense
    layer of VGG16 reads 7x7x512 features, that of AlexNet 6x6x256.
    """
    if name == "vgg16":
        return keras.applications.VGG16(weights=None, classes=num_classes, classifier_activation=None)
    single_tower = name == "alexnet_torchvision"
    size, pad = (224, (2, 2)) if single_tower else (227, (0, 0))
    images = keras.Input((size, size, 3), name="image")
    spec = Architecture(backbone=name, width=width)
    x = alexnet(images, spec, single_tower=single_tower, pad=pad, seed=seed)[32]
    x = keras.layers.Flatten(name="flatten")(x)
    for layer in ("fc6", "fc7"):
        units = max(1, round(4096 * width))
        x = keras.layers.Dense(units, activation="relu", kernel_initializer=he_normal(layer, seed), name=layer)(x)
        x = keras.layers.Dropout(0.5, name=f"drop_{layer}")(x)
    scores = keras.layers.Dense(num_classes, kernel_initializer=he_normal("fc8", seed), name="fc8")(x)
    return keras.Model(images, scores, name=name)
