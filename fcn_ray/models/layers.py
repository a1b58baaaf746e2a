"""The layers that Keras lacks: pad, pool and crop for every image size, a fixed scale, AlexNet's, dropout with a name.

Sizes are read when the layer runs, not when it is built: the height and width of an FCN's input are unknown inside a
tf.function. Upsampling has a file of its own.
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
        # size * (stride - 1) is -size, modulo the stride, and not negative: the ONNX of tf2onnx rounds towards zero.
        below, right = (size * (self.stride - 1) % self.stride for size in ops.shape(images)[1:3])
        return ops.pad(images, [[0, 0], [0, below], [0, right], [0, 0]])

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Each known size rounded up."""
        batch, height, width, channels = input_shape
        return (batch, *(None if size is None else size + -size % self.stride for size in (height, width)), channels)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "stride": self.stride}


@keras.saving.register_keras_serializable(package="fcn_ray")
class CropLike(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Cells from `offset` on, as many as the other map has: [(N, H', W', C), (N, H, W, _)] -> (N, H, W, C)."""

    def __init__(self, offset: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.offset = offset

    def call(self, inputs: list[Tensor]) -> Tensor:
        """`inputs` = [what is cropped, what it shall be as large as]."""
        cells, other = inputs
        _, height, width, _ = ops.shape(other)
        return cells[:, self.offset : self.offset + height, self.offset : self.offset + width, :]

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        """Sizes of the other map, channels of the cropped one."""
        cells, other = input_shape
        return (cells[0], other[1], other[2], cells[3])

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "offset": self.offset}


@keras.saving.register_keras_serializable(package="fcn_ray")
class CeilMaxPooling(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Max pooling as Caffe does it: the last window may hang over the edge.

    (N, H, W, C) -> (N, ceil((H - k) / s) + 1, ceil((W - k) / s) + 1, C) for windows of k cells at stride s. Keras'
    "same" would begin before the first cell for sizes that leave a remainder. For inputs of 0 and above (after a ReLU):
    what hangs over is filled with zeros.
    """

    padding = "valid"

    def __init__(self, pool_size: int, strides: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_size, self.strides = (pool_size, pool_size), strides

    def call(self, inputs: Tensor) -> Tensor:
        """Maxima of the windows."""
        # pool_size - size, modulo the strides, and not negative: see PadToStride.
        over = [(self.pool_size[0] + size * (self.strides - 1)) % self.strides for size in ops.shape(inputs)[1:3]]
        padded = ops.pad(inputs, [[0, 0], [0, over[0]], [0, over[1]], [0, 0]])
        return ops.max_pool(padded, self.pool_size, self.strides, padding="valid")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Each known size divided by the stride, rounded up."""
        batch, height, width, channels = input_shape
        sizes = (None if n is None else -(-(n - self.pool_size[0]) // self.strides) + 1 for n in (height, width))
        return (batch, *sizes, channels)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "pool_size": self.pool_size[0], "strides": self.strides}


@keras.saving.register_keras_serializable(package="fcn_ray")
class LocalResponseNormalization(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """x / (1 + alpha / n * sum of x^2 over n channels around)^beta (Krizhevsky et al. 2012, section 3.3; as Caffe)."""

    SIZE, ALPHA, BETA = 5, 1e-4, 0.75

    def call(self, inputs: Tensor) -> Tensor:
        """Normalised `inputs` (N, H, W, C)."""
        half, channels = self.SIZE // 2, inputs.shape[-1]
        squares = ops.pad(ops.square(inputs), [[0, 0], [0, 0], [0, 0], [half, half]])
        total = sum(squares[..., shift : shift + channels] for shift in range(self.SIZE))
        return inputs / (1 + total * (self.ALPHA / self.SIZE)) ** self.BETA

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """That of the inputs."""
        return input_shape


@keras.saving.register_keras_serializable(package="fcn_ray")
class GroupedConv2D(keras.layers.Conv2D):  # type: ignore[misc]  # Keras has no types
    """Conv2D whose `groups` are convolved one after the other: TensorFlow has no grouped convolution for CPUs."""

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Each group of input channels with its part of the kernel (k, k, in / groups, out)."""
        parts = zip(ops.split(inputs, self.groups, axis=-1), ops.split(kernel, self.groups, axis=-1), strict=True)
        convolve = super().convolution_op
        return ops.concatenate([convolve(cells, weights) for cells, weights in parts], axis=-1)


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
