"""Pixels to network input; the numbers come from the bundle, because they belong to the weights."""

from __future__ import annotations

from keras import ops

from fcn_ray.config import Preprocessing
from fcn_ray.models.layers import Tensor


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """RGB uint8 (N, H, W, 3) -> float32 (N, H, W, 3) in the channel order of `preprocessing`: (x - mean) / std."""
    if preprocessing.channels == "BGR":
        images = ops.flip(images, axis=-1)
    mean = ops.convert_to_tensor(preprocessing.mean, dtype="float32")
    std = ops.convert_to_tensor(preprocessing.std, dtype="float32")
    return (ops.cast(images, "float32") - mean) / std
