"""A network that starts from a classifier: its backbone, its dense layers as fc6 and fc7, the scale of each level."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from fcn_ray.config import FC6_SIZE
from fcn_ray.errors import ConfigError
from fcn_ray.models.fcn import backbone_layers
from fcn_ray.models.weight_files import IMAGENET, Weights, check_weights, convert_weights, read_weights

logger = logging.getLogger(__name__)

MAGNITUDES: dict[str, dict[str, float]] = {
    "vgg16": {"scale_pool3": 512.0, "scale_pool4": 128.0, "scale_pool5": 8.0},
    "alexnet_torchvision": {"scale_pool3": 2.0, "scale_pool4": 4.0, "scale_pool5": 1.0},
}
"""Root mean square of the ImageNet features on photographs, as powers of two: on CamVid VGG16's are 605, 112 and 7,
those of torchvision's AlexNet 2.4, 3.4 and 1.4. Caffe's AlexNet is not measured.

Unscaled, a step of one learning rate would move the scores of pool3 a hundred thousand times as far as those of a level
of magnitude 1. The levels of the other backbones come out of a normalisation: 1.
"""

RELEASE_SCALES = {"scale_pool5/factor": 1.0, "scale_pool4/factor": 0.01, "scale_pool3/factor": 0.0001}
"""Factors of the authors' at-once recipe (release, voc-fcn8s-atonce/net.py)."""

CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg16": ("VGG16", {}),
    "resnet50": ("ResNet50", {}),
    "mobilenetv3_large": ("MobileNetV3Large", {"include_preprocessing": False}),
    "mobilenetv3_small": ("MobileNetV3Small", {"include_preprocessing": False}),
}
"""Function of keras.applications by backbone, and its options."""


def load_backbone_weights(
    model: keras.Model, source: str, backbone: str, scales: Literal["features", "paper"] = "features"
) -> list[str]:
    """Set the layers of `model` that classifier weights have; the names of the layers set, from the image on.

    `source` is a file (fcn_ray.models.weight_files), or "imagenet", which downloads those of keras-applications. That
    is every layer of the backbone, and fc6 and fc7 where both hold the classifier's dense layers in their full size
    (paper, section 4.1); a slimmer fc6 and fc7 stay random. The scale of each level becomes one over the magnitude of
    its features (`scales` = "features"), or that of the release ("paper"); a classifier's fc6 is multiplied by the
    magnitude of what it reads, and computes what it has learned.

    Raises ConfigError when the weights cannot be had, lack a layer, or are of another shape; then nothing is set.
    """
    weights = _download(model, backbone) if source == IMAGENET else read_weights(source, backbone)
    layers = backbone_layers(model)
    values = [[_fitting(weights, variable, source) for variable in layer.weights] for layer in layers]
    head = [model.get_layer(name) for name in ("fc6", "fc7")]
    if _fit(weights, head, source):
        layers += head
        values += [[weights.arrays[variable.path] for variable in layer.weights] for layer in head]
    for layer, arrays in zip(layers, values, strict=True):
        layer.set_weights(arrays)
    # torchvision's VGG16 was trained on inputs of about 1, not of about 100 as the measured one.
    measured = (backbone, weights.convention) != ("vgg16", "torchvision")
    factors = RELEASE_SCALES if scales == "paper" else feature_scales(backbone) if measured else {}
    for variable in model.weights:
        if variable.path in factors:
            variable.assign(factors[variable.path])
    factor = factors.get("scale_pool5/factor", 1.0)
    if head[0] in layers and factor != 1.0:  # it has learned features that were not scaled
        head[0].kernel.assign(head[0].kernel / factor)
    return [layer.name for layer in layers]


def _fitting(weights: Weights, variable: keras.Variable, source: str) -> NDArray[np.float32]:
    """The array for `variable`."""
    if variable.path not in weights.arrays:
        raise ConfigError(
            f"model.weights {source}: {variable.path} is missing; found {len(weights.arrays)} arrays "
            f"({sorted(weights.arrays)[:4]}). Give another file or null"
        )
    array, shape = weights.arrays[variable.path], tuple(variable.shape)
    if array.shape != shape:
        raise ConfigError(
            f"model.weights {source}: {variable.path} has shape {array.shape}, the network needs {shape}. "
            "Pretrained backbones fit model.width 1.0 only; set that, or model.weights to null"
        )
    return array


def _fit(weights: Weights, head: list[keras.layers.Layer], source: str) -> bool:
    """True when the dense layers of the classifier are there and as large as those of the network."""
    shapes = {variable.path: tuple(variable.shape) for layer in head for variable in layer.weights}
    found = {name: weights.arrays[name].shape for name in shapes if name in weights.arrays}
    if found and found != shapes:
        logger.info("%s: fc6 and fc7 stay random: they are %s, those of the classifier %s", source, shapes, found)
    return found == shapes


def feature_scales(backbone: str) -> dict[str, float]:
    """One over the magnitude of the pretrained features of each level, by the path of its factor."""
    return {f"{name}/factor": 1 / magnitude for name, magnitude in MAGNITUDES.get(backbone, {}).items()}


def _download(model: keras.Model, backbone: str) -> Weights:
    check_weights(IMAGENET, backbone)
    name, options = CLASSIFIERS[backbone]
    with_dense = backbone in FC6_SIZE and model.get_layer("fc6").filters == 4096
    try:
        with _one_at_a_time():
            classifier = getattr(keras.applications, name)(include_top=with_dense, weights="imagenet", **options)
    except Exception as error:  # Keras raises a bare Exception when the download fails
        raise ConfigError(
            f"model.weights imagenet: the download failed ({error}). Without a network, set model.weights to a local "
            ".npz, .h5, .keras or .safetensors file"
        ) from error
    return convert_weights({v.path: ops.convert_to_numpy(v) for v in classifier.weights}, backbone, IMAGENET)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one process in of those that share Keras' folder of downloads; a dead one leaves nothing behind.

    Keras writes a download into the very file in which the other workers look for the weights.
    """
    folder, file = Path(os.environ.get("KERAS_HOME") or "~/.keras"), None
    with suppress(OSError, RuntimeError):  # no such folder can be had, or no lock in it: then as without the others
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / "fcn_ray-download.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)
