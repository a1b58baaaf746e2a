"""The layers that Keras lacks: pad, upsample and crop for every image size, a fixed scale, dropout with a name.

Sizes are read when the layer runs, not when it is built: the height and width of an FCN's input are unknown inside a
tf.function, where keras.layers.UpSampling2D and keras.ops.image.resize fail.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any
"""A backend tensor or a KerasTensor: Keras has no common static type for them."""

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="fcn_ray")
class PadToStride(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Zeros below and to the right, up to the next multiple of `stride`: (N, H, W, C) -> (N, H', W', C).

    The network's zero is the mean colour (inputs are normalised before), and the top left pixel stays where it is, so
    that the scores need no shift, only a crop at the end.
    """

    def __init__(self, stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, images: Tensor) -> Tensor:
        """Padded copy of `images`."""
        _, height, width, _ = ops.shape(images)
        return ops.pad(images, [[0, 0], [0, -height % self.stride], [0, -width % self.stride], [0, 0]])

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Each known size rounded up."""
        batch, height, width, channels = input_shape
        return (batch, *(None if size is None else size + -size % self.stride for size in (height, width)), channels)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "stride": self.stride}


@keras.saving.register_keras_serializable(package="fcn_ray")
class Upsample(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Bilinear upsampling by a whole `factor`, half-pixel centres: (N, H, W, C) -> (N, factor H, factor W, C).

    Equal to the paper's fixed bilinear deconvolution (kernel 2 factor, stride factor, cropped by factor / 2) of a score
    map whose edge cells are repeated once (Long et al. 2015, section 3.3), without its dense C x C kernel. Made of
    slices and sums: a cell has the same bits whatever lies beyond its neighbours, and the gradient needs no atomic
    additions.
    """

    def __init__(self, factor: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, scores: Tensor) -> Tensor:
        """Larger copy of `scores`: first the rows, then the columns."""
        return _stretch(_stretch(scores, self.factor, axis=1), self.factor, axis=2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Each known size times the factor."""
        batch, height, width, channels = input_shape
        return (batch, *(None if size is None else size * self.factor for size in (height, width)), channels)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="fcn_ray")
class CropLike(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Top left part of the scores, as large as the image: [(N, H', W', C), (N, H, W, _)] -> (N, H, W, C)."""

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`inputs` = [scores, images]."""
        scores, images = inputs
        _, height, width, _ = ops.shape(images)
        return scores[:, :height, :width, :]

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        """Sizes of the images, channels of the scores."""
        scores, images = input_shape
        return (scores[0], images[1], images[2], scores[3])


@keras.saving.register_keras_serializable(package="fcn_ray")
class Scale(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Inputs times one number that is stored with the weights but never trained; it starts at 1."""

    def build(self, input_shape: Shape) -> None:
        """One float32 scalar."""
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones", trainable=False)

    def call(self, inputs: Tensor) -> Tensor:
        """Scaled `inputs`, in their own dtype."""
        return inputs * ops.cast(self.factor, inputs.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """That of the inputs."""
        return input_shape


@keras.saving.register_keras_serializable(package="fcn_ray")
class SeededDropout(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Dropout whose random state is called `<layer>/seed_generator_state`, the same in every process.

    keras.layers.Dropout counts its states up over the process (seed_generator_11), so that a checkpoint of them fits
    only a process that has built the same networks before. The state is a variable: a new mask every step. Workers that
    share a step share the mask of each position too.
    """

    def __init__(self, rate: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed, name=self.name)

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """While training, a share `rate` of the inputs is 0 and the others are divided by 1 - `rate`."""
        if not training or self.rate == 0:
            return inputs
        return keras.random.dropout(inputs, self.rate, seed=self.generator)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """That of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def _stretch(x: Tensor, factor: int, axis: int) -> Tensor:
    """`x` (N, H, W, C) upsampled along `axis` (1 or 2).

    Output cell i * factor + p lies (p + 0.5) / factor - 0.5 input cells after the centre of cell i, so each of the
    `factor` phases is one blend of the whole map with its neighbour before or after; they are interleaved at the end.
    """
    size = ops.shape(x)[axis]
    before = ops.concatenate([_part(x, axis, 0, 1), _part(x, axis, 0, size - 1)], axis=axis)
    after = ops.concatenate([_part(x, axis, 1, size), _part(x, axis, size - 1, size)], axis=axis)
    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5
        neighbour = after if offset >= 0 else before
        phases.append(x + (neighbour - x) * abs(offset))
    shape = list(ops.shape(x))
    shape[axis] = size * factor
    return ops.reshape(ops.stack(phases, axis=axis + 1), shape)


def _part(x: Tensor, axis: int, start: Tensor, stop: Tensor) -> Tensor:
    """Rows (`axis` 1) or columns (`axis` 2) of `x` from `start` up to `stop`."""
    return x[:, start:stop] if axis == 1 else x[:, :, start:stop]
