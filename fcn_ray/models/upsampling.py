"""Coarse scores to fine ones: the bilinear resize, and the deconvolution of the paper, fixed or learned.

All three place the first cell's centre at a given output cell, `centre`: half-pixel centres are (factor - 1) / 2.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from fcn_ray.models.layers import Shape, Tensor


def bilinear_kernel(size: int) -> np.ndarray:
    """(size, size) float32 weights that blend bilinearly; `upsample_filt` of the release's surgery.py."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    ramp = 1 - np.abs(np.arange(size) - centre) / factor
    return np.outer(ramp, ramp).astype(np.float32)


def kernel_size(factor: int, centre: float) -> int:
    """Side of the bilinear kernel whose cells fall on whole output cells: 2 factor, or one less (64 and 63 for 32).

    The release has 64 for VGG16, whose cells lie between two pixels, and 63 for AlexNet, whose cells lie on one.
    """
    return 2 * factor - 1 if float(centre).is_integer() else 2 * factor


@keras.saving.register_keras_serializable(package="fcn_ray")
class Upsample(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Bilinear upsampling by a whole `factor`: (N, H, W, C) -> (N, factor H, factor W, C).

    Cell i's centre falls on output cell `factor * i + centre`. Equal to the paper's fixed bilinear deconvolution of a
    score map whose edge cells are repeated once (Long et al. 2015, section 3.3), without its dense C x C kernel. Made
    of slices and sums: a cell has the same bits whatever lies beyond its neighbours, and the gradient needs no atomic
    additions.
    """

    def __init__(self, factor: int, centre: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor
        self.centre = float((factor - 1) / 2 if centre is None else centre)
        _check_centre(self.centre, factor)

    def call(self, scores: Tensor) -> Tensor:
        """Larger copy of `scores`: first the rows, then the columns."""
        rows = _stretch(scores, self.factor, self.centre, axis=1)
        return _stretch(rows, self.factor, self.centre, axis=2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Each known size times the factor."""
        batch, height, width, channels = input_shape
        return (batch, *(None if size is None else size * self.factor for size in (height, width)), channels)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "factor": self.factor, "centre": self.centre}


@keras.saving.register_keras_serializable(package="fcn_ray")
class Deconvolution(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Backwards convolution with a bilinear kernel (Long et al. 2015, section 3.3), fixed or `learned` from there.

    With a `centre`, edge cells are repeated once and the output is cut to (N, factor H, factor W, C), with cell i at
    `factor * i + centre`: then the fixed one equals Upsample. Without, it is the release's: no padding, size
    (H - 1) factor + kernel_size, with cell i at `factor * i + (kernel_size - 1) / 2`.

    The learned kernel is (size, size, C out, C in), bilinear on the diagonal and zero off it; no bias, as in the
    release. The fixed one has the diagonal only and is stored nowhere.
    """

    def __init__(
        self, factor: int, kernel_size: int, centre: float | None = None, learned: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.factor, self.kernel_size, self.learned = factor, kernel_size, learned
        self.valid = centre is None
        self.centre = float((kernel_size - 1) / 2 if centre is None else centre)
        if not self.valid:
            _check_centre(self.centre, factor)
        start = factor + (kernel_size - 1) / 2 - self.centre
        if not start.is_integer():
            raise ValueError(f"kernel_size {kernel_size} puts no cell on {self.centre}: use {kernel_size - 1}")
        self.start = int(start)

    def build(self, input_shape: Shape) -> None:
        """The kernel, when it is learned."""
        channels = input_shape[-1]
        if self.learned:
            self.kernel = self.add_weight(
                name="kernel",
                shape=(self.kernel_size, self.kernel_size, channels, channels),
                initializer=_bilinear_diagonal,
            )

    def call(self, scores: Tensor) -> Tensor:
        """Larger scores."""
        _, height, width, _ = ops.shape(scores)
        if not self.valid:
            scores = _repeat_edge(_repeat_edge(scores, axis=1), axis=2)
        large = self._convolve(scores) if self.learned else self._convolve_each(scores)
        if self.valid:
            return large
        rows = large[:, self.start : self.start + self.factor * height]
        return rows[:, :, self.start : self.start + self.factor * width]

    def _convolve(self, scores: Tensor) -> Tensor:
        return ops.conv_transpose(scores, ops.cast(self.kernel, scores.dtype), self.factor, padding="valid")

    def _convolve_each(self, scores: Tensor) -> Tensor:
        """Channel by channel: a dense kernel would multiply zeros in all but one of them."""
        batch, height, width, channels = ops.shape(scores)
        kernel = ops.cast(bilinear_kernel(self.kernel_size)[:, :, None, None], scores.dtype)
        maps = ops.reshape(ops.transpose(scores, (0, 3, 1, 2)), (-1, height, width, 1))
        large = ops.conv_transpose(maps, kernel, self.factor, padding="valid")
        _, height, width, _ = ops.shape(large)
        return ops.transpose(ops.reshape(large, (batch, channels, height, width)), (0, 2, 3, 1))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """See the class."""
        batch, height, width, channels = input_shape
        more = self.kernel_size - self.factor if self.valid else 0
        return (batch, *(None if n is None else n * self.factor + more for n in (height, width)), channels)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "factor": self.factor,
            "kernel_size": self.kernel_size,
            "centre": None if self.valid else self.centre,
            "learned": self.learned,
        }


def _check_centre(centre: float, factor: int) -> None:
    """Both layers blend a cell with its next neighbour only."""
    if not (0 <= centre <= factor - 1 and (2 * centre).is_integer()):
        raise ValueError(f"centre {centre} of factor {factor}: expected a multiple of 0.5 from 0 to {factor - 1}")


def _bilinear_diagonal(shape: tuple[int, ...], dtype: Any = None) -> Tensor:
    """(size, size, C, C): the bilinear kernel from each channel to itself, nothing between channels."""
    return ops.cast(bilinear_kernel(shape[0])[:, :, None, None] * np.eye(shape[2], dtype=np.float32), dtype)


def _stretch(x: Tensor, factor: int, centre: float, axis: int) -> Tensor:
    """`x` (N, H, W, C) upsampled along `axis` (1 or 2).

    Output cell i * factor + p lies (p - centre) / factor input cells after the centre of cell i, so each of the
    `factor` phases is one blend of the whole map with its neighbour before or after; they are interleaved at the end.
    """
    size = ops.shape(x)[axis]
    before = ops.concatenate([_part(x, axis, 0, 1), _part(x, axis, 0, size - 1)], axis=axis)
    after = ops.concatenate([_part(x, axis, 1, size), _part(x, axis, size - 1, size)], axis=axis)
    phases = []
    for phase in range(factor):
        offset = (phase - centre) / factor
        neighbour = after if offset >= 0 else before
        phases.append(x + (neighbour - x) * abs(offset))
    shape = list(ops.shape(x))
    shape[axis] = size * factor
    return ops.reshape(ops.stack(phases, axis=axis + 1), shape)


def _repeat_edge(x: Tensor, axis: int) -> Tensor:
    """`x` with its first and last row or column twice."""
    size = ops.shape(x)[axis]
    return ops.concatenate([_part(x, axis, 0, 1), x, _part(x, axis, size - 1, size)], axis=axis)


def _part(x: Tensor, axis: int, start: Tensor, stop: Tensor) -> Tensor:
    """Rows (`axis` 1) or columns (`axis` 2) of `x` from `start` up to `stop`."""
    return x[:, start:stop] if axis == 1 else x[:, :, start:stop]
