"""Very small networks for tests, with score layers that are not zero."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from fcn_ray.config import ModelSpec
from fcn_ray.models.fcn import build_fcn

if TYPE_CHECKING:
    import tensorflow as tf


def tiny_spec(**changes: Any) -> ModelSpec:
    # Keras rounds the channels of MobileNetV3 to multiples of 8, and ResNet50 has one width.
    width = {"resnet50": 1.0, "mobilenetv3_large": 0.25, "mobilenetv3_small": 0.25}.get(changes.get("backbone"), 0.02)
    return ModelSpec(**({"width": width, "fc_channels": 6, "num_classes": 4} | changes))


def tiny_model(spec: ModelSpec | None = None, **options: Any) -> keras.Model:
    """A tiny FCN with random scores and biases, so that every layer shows in the output."""
    model = build_fcn(spec or tiny_spec(), **options)
    rng = np.random.default_rng(5)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.path.startswith("score") and weight.path.endswith("kernel"):
                weight.assign(rng.normal(size=weight.shape))
            elif weight.path.endswith("bias"):
                weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


@functools.cache
def shared_model(**changes: Any) -> keras.Model:
    """One tiny network of each kind for tests that only look at it: ResNet50 takes seconds to build."""
    return tiny_model(tiny_spec(**changes))


def any_size(model: keras.Model) -> Callable[[np.ndarray], tf.Tensor]:
    """The network compiled once for images of every size, as inference runs it."""
    import tensorflow as tf  # not above: a process on JAX builds tiny networks too

    signature = [tf.TensorSpec((None, None, None, 3), tf.float32)]
    return tf.function(lambda images: model(images, training=False), input_signature=signature)


def weight_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}
