"""Surgery: a classifier becomes fully convolutional, a coarse FCN grows a skip (Long et al. 2015, sections 3.1, 4.2).

The release's surgery.py copies weights flat between Caffe networks; here the order in which a classifier flattened its
features is named, since only in the right one the converted network says what the classifier said.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import keras
import numpy as np

from fcn_ray.config import VARIANTS, ModelSpec, Precision
from fcn_ray.models.fcn import build_fcn
from fcn_ray.models.layers import Tensor
from fcn_ray.models.weights import RELEASE_SCALES, feature_scales

FlattenOrder = Literal["keras", "caffe", "torch"]
"""Order of the features that a classifier's first dense layer reads: rows, columns, channels in Keras; channels, rows,
columns in Caffe and torch."""


def convolutionalize(classifier: keras.Model, *, flatten: FlattenOrder = "keras") -> keras.Model:
    """The fully convolutional form of a classifier: images (N, H, W, 3) of any size -> class maps (N, h, w, classes).

    Everything up to the Flatten layer stays; each Dense layer behind it becomes a convolution with the same weights:
    the first spans the feature map of the classifier's own input size (7x7x512x4096 for VGG16, 6x6x256x4096 for
    AlexNet), the others are 1x1. Padding "valid": at the classifier's own input size the map is 1x1 and equals its
    scores, and a larger image gives a map of as many cells as there are windows of features (384x384 gives VGG16 6x6).

    `flatten` is the order in which the first dense kernel counts the features: "torch" or "caffe" when it was copied
    from there without reordering. The classifier is a functional or sequential network with one Flatten layer and a
    chain of Dense, Dropout and Activation layers behind it. Raises ValueError that names the layer otherwise.
    """
    layers = [layer for layer in classifier.layers if not isinstance(layer, keras.layers.InputLayer)]
    flat = [index for index, layer in enumerate(layers) if isinstance(layer, keras.layers.Flatten)]
    if len(flat) != 1:
        raise ValueError(
            f"{classifier.name} has {len(flat)} Flatten layers, expected one between features and classifier (behind "
            "global pooling the dense layers are 1x1 convolutions already: build such a backbone with build_fcn)"
        )
    images = keras.Input((None, None, *classifier.input_shape[3:]), name="image")
    trunk = keras.Model(classifier.inputs, layers[flat[0]].input)
    cells = keras.models.clone_model(trunk, input_tensors=[images]).outputs[0]
    map_shape = layers[flat[0]].input.shape[1:]
    weights: dict[str, list[np.ndarray]] = {layer.name: layer.get_weights() for layer in layers[: flat[0]]}
    for before, layer in pairwise(layers[flat[0] :]):
        if layer.input is not before.output:
            raise ValueError(
                f"layer {layer.name} does not read {before.name}: expected a chain of layers behind Flatten"
            )
        cells, weights[layer.name] = _convolutional(layer, cells, map_shape, flatten)
        if isinstance(layer, keras.layers.Dense):
            map_shape = (1, 1, layer.units)
    converted = keras.Model(images, cells, name=f"convolutional_{classifier.name}")
    for layer in converted.layers:
        if weights.get(layer.name):
            layer.set_weights(weights[layer.name])
    return converted


def _convolutional(
    layer: keras.layers.Layer, cells: Tensor, map_shape: tuple[int, ...], flatten: FlattenOrder
) -> tuple[Tensor, list[np.ndarray]]:
    """What `layer` becomes, applied to `cells`, and its weights. Its features had shape `map_shape` (H, W, C)."""
    if isinstance(layer, keras.layers.Dense):
        kernel, *bias = layer.get_weights()
        convolution = keras.layers.Conv2D(
            layer.units,
            map_shape[:2],
            activation=layer.activation,
            use_bias=layer.use_bias,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=layer.name,
        )
        return convolution(cells), [dense_to_convolution(kernel, map_shape, flatten), *bias]
    if isinstance(layer, keras.layers.Dropout | keras.layers.Activation | keras.layers.ReLU | keras.layers.Softmax):
        return type(layer).from_config(layer.get_config())(cells), []
    raise ValueError(
        f"layer {layer.name} ({type(layer).__name__}) behind Flatten has no convolutional form here: expected Dense, "
        "Dropout, Activation, ReLU or Softmax"
    )


def dense_to_convolution(kernel: np.ndarray, map_shape: tuple[int, ...], flatten: FlattenOrder) -> np.ndarray:
    """Dense kernel (H * W * C, out) over features of `map_shape` (H, W, C) -> convolution kernel (H, W, C, out)."""
    height, width, channels = map_shape
    if kernel.shape[0] != height * width * channels:
        raise ValueError(f"a dense kernel {kernel.shape} does not fit features of shape {map_shape}")
    if flatten == "keras":
        return kernel.reshape(height, width, channels, -1)
    return kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)


def grow(
    model: keras.Model, spec: ModelSpec, variant: str, *, precision: Precision = "float32", seed: int = 0
) -> tuple[keras.Model, ModelSpec]:
    """An FCN of the same or a finer `variant` with the weights of `model`, a network of `spec`, and its spec.

    The new score layers are zero, so that the grown network starts with exactly the predictions of `model`, upsampled
    in two steps instead of one (paper, section 4.2). Learned deconvolutions that changed their stride start bilinear.
    Raises ValueError when `variant` is none, or coarser than that of `spec`.
    """
    if variant not in VARIANTS or VARIANTS.index(variant) < VARIANTS.index(spec.variant):
        raise ValueError(f"a {spec.variant} network cannot become {variant}: it grows {' -> '.join(VARIANTS)}")
    finer = spec.model_copy(update={"variant": variant})
    grown = build_fcn(finer, precision=precision, seed=seed)
    graft(grown, {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}, spec.backbone)
    return grown, finer


def graft(
    model: keras.Model,
    weights: Mapping[str, np.ndarray],
    backbone: str,
    scales: Literal["features", "paper"] = "features",
) -> list[str]:
    """Set what `model` has in common with a coarser network's `weights`, by path; the names of the layers set.

    A level that is new is scaled as pretrained features are, where the old levels are (`scales` "features"), or as in
    the release ("paper"): see fcn_ray.models.weights.
    """
    known = feature_scales(backbone)
    pretrained = all(weights[path] == factor for path, factor in known.items() if path in weights)
    new = RELEASE_SCALES if scales == "paper" else known if pretrained else {}
    transplant({path: np.asarray(factor, np.float32) for path, factor in new.items()}, model)
    return sorted({path.partition("/")[0] for path in transplant(weights, model)})


def transplant(weights: Mapping[str, np.ndarray], model: keras.Model) -> list[str]:
    """Set the weights of `model` that `weights` has under the same path and in the same shape; the paths set."""
    taken = []
    for weight in model.weights:
        value = weights.get(weight.path)
        if value is not None and np.shape(value) == tuple(weight.shape):
            weight.assign(value)
            taken.append(weight.path)
    return taken
