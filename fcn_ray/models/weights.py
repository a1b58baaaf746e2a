"""Pretrained backbones: kernels and biases from a file with the layer names of keras-applications."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from zipfile import BadZipFile

import h5py
import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from fcn_ray import storage
from fcn_ray.errors import ConfigError

Arrays = dict[str, NDArray[np.float32]]
"""Kernels (height, width, in, out) and biases (out,) by "layer/kernel" and "layer/bias"."""

MAGNITUDES = {"scale_pool3": 512.0, "scale_pool4": 128.0, "scale_pool5": 8.0}
"""Root mean square of VGG16's ImageNet features on photographs (measured on CamVid: 605, 112, 7), as powers of two.

Unscaled, a step of one learning rate would move the scores of pool3 a hundred thousand times as far as those of a level
of magnitude 1. The authors' at-once recipe scales for the same reason (pool4 by 0.01, pool3 by 0.0001).
"""


def load_backbone_weights(model: keras.Model, source: str) -> list[str]:
    """Set every backbone layer of `model` from `source`; the names of the layers set, from the image on.

    `source` is a .npz (keys such as "block1_conv1/kernel", float16 or float32), a .h5 as keras-applications publishes
    them, or "imagenet", which downloads those of Keras. The scale of each level is set so that the head reads features
    of about 1 (MAGNITUDES); fc6, fc7 and the score layers stay as they are. Raises ConfigError when the file cannot be
    read, lacks a layer, or was made for another shape; then nothing is set.
    """
    arrays = _read(source)
    layers = [layer for layer in model.layers if layer.name.startswith("block") and layer.weights]
    values = [[_fitting(arrays, weight, source) for weight in layer.weights] for layer in layers]
    for layer, arrays_of_layer in zip(layers, values, strict=True):
        layer.set_weights(arrays_of_layer)
    for layer in model.layers:
        if layer.name in MAGNITUDES:
            layer.set_weights([np.float32(1 / MAGNITUDES[layer.name])])
    return [layer.name for layer in layers]


def _fitting(arrays: Arrays, weight: keras.Variable, source: str) -> NDArray[np.float32]:
    """The array for `weight`."""
    if weight.path not in arrays:
        found = ", ".join(sorted(arrays)[:4]) or "nothing"
        raise ConfigError(
            f"model.weights {source}: {weight.path} is missing; found {len(arrays)} arrays ({found}, ...). "
            "Expected the layer names of keras-applications; give another file or null"
        )
    array = arrays[weight.path]
    if array.shape != tuple(weight.shape):
        raise ConfigError(
            f"model.weights {source}: {weight.path} has shape {array.shape}, the network needs {tuple(weight.shape)}. "
            "Pretrained backbones fit model.width 1.0 only; set that, or model.weights to null"
        )
    if not np.isfinite(array).all():
        raise ConfigError(f"model.weights {source}: {weight.path} holds NaN or infinite values; get the file again")
    return array


def _read(source: str) -> Arrays:
    if source == "imagenet":
        return _download()
    suffix = source.rsplit(".", 1)[-1].lower()
    if suffix not in READERS:
        raise ConfigError(f'model.weights {source}: expected a .npz or .h5 file, or "imagenet"')
    if not storage.is_file(source):
        raise ConfigError(f"model.weights {source}: there is no such file")
    try:
        return READERS[suffix](storage.read_bytes(source))
    except (ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
        raise ConfigError(f"model.weights {source}: not a readable .{suffix} file ({error}); get it again") from error


def _read_npz(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {key: np.asarray(file[key], np.float32) for key in file.files}


def _read_h5(data: bytes) -> Arrays:
    """Datasets of a legacy Keras file: one group per layer, the kernel is told from the bias by its rank."""
    arrays: Arrays = {}
    with h5py.File(io.BytesIO(data), "r") as file:
        root = file.get("model_weights", file)
        for layer in root:
            for dataset in _datasets(root[layer]):
                arrays[f"{layer}/{'bias' if dataset.ndim == 1 else 'kernel'}"] = np.asarray(dataset, np.float32)
    return arrays


def _datasets(node: h5py.Group | h5py.Dataset) -> Iterator[h5py.Dataset]:
    if isinstance(node, h5py.Dataset):
        yield node
        return
    for child in node.values():
        yield from _datasets(child)


READERS: dict[str, Callable[[bytes], Arrays]] = {"npz": _read_npz, "h5": _read_h5}
"""Readers by the end of the file's name. None of them runs code from the file."""


def _download() -> Arrays:
    try:
        classifier = keras.applications.VGG16(include_top=False, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception when the download fails
        raise ConfigError(
            f"model.weights imagenet: the download failed ({error}). Without a network, set model.weights to a local "
            ".npz or .h5 file with the layer names of keras-applications"
        ) from error
    return {weight.path: ops.convert_to_numpy(weight) for weight in classifier.weights}
