"""Pixels to network input; the numbers come from the bundle, because they belong to the weights."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from fcn_ray.config import Preprocessing
from fcn_ray.models.layers import Shape, Tensor


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """RGB uint8 (N, H, W, 3) -> float32 (N, H, W, 3) in the channel order of `preprocessing`: (x - mean) / std."""
    if preprocessing.channels == "BGR":
        images = ops.flip(images, axis=-1)
    centred = ops.cast(images, "float32") - ops.convert_to_tensor(preprocessing.mean, dtype="float32")
    if set(preprocessing.std) == {1.0}:
        return centred  # the same bits, without a pass over the image
    return centred / ops.convert_to_tensor(preprocessing.std, dtype="float32")


@keras.saving.register_keras_serializable(package="fcn_ray")
class Normalise(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """`normalise` as a layer: RGB of 0..255, any number type, (N, H, W, 3) -> the network's float32 input.

    `preprocessing` may be the dict that `get_config` makes of it. It has no weights.
    """

    def __init__(self, preprocessing: Preprocessing | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preprocessing = Preprocessing.model_validate(preprocessing)

    def call(self, images: Tensor) -> Tensor:
        """Normalised `images`."""
        return normalise(images, self.preprocessing)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """That of the images."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "preprocessing": self.preprocessing.model_dump(mode="json")}
