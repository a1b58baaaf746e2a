"""Very small networks for tests, with score layers that are not zero."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from fcn_ray.config import ModelSpec
from fcn_ray.models.fcn import build_fcn


def tiny_spec(**changes: Any) -> ModelSpec:
    return ModelSpec(**({"width": 0.02, "fc_channels": 6, "num_classes": 4} | changes))


def tiny_model(spec: ModelSpec | None = None, **options: Any) -> keras.Model:
    """A tiny FCN with random scores and biases, so that every layer shows in the output."""
    model = build_fcn(spec or tiny_spec(), **options)
    rng = np.random.default_rng(5)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            if layer.name.startswith("score"):
                kernel = rng.normal(size=kernel.shape)
            layer.set_weights([kernel, rng.normal(scale=0.3, size=bias.shape)])
    return model


def weight_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}
