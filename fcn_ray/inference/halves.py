"""One image at a time on CPUs without AVX-512: its convolutions run over two halves of its rows, as a batch of two.

TensorFlow hands oneDNN the kernels of a batch of one as they lie, and for those oneDNN has no fast convolution without
AVX-512: it makes a matrix of all windows, at half the speed, and where that would be larger than 1 GiB (3x3 over 256
channels of 360x360) it takes its reference code, at a hundredth of it. Seen with TensorFlow 2.21, on AVX2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from fcn_ray.inference.precision import cpu_flags

Convolution = Callable[[Any, Any], Any]


def lacks_fast_single() -> bool:
    """Whether this machine's CPU is one of those, and oneDNN is not switched off."""
    flags = cpu_flags()
    return "avx2" in flags and "avx512f" not in flags and os.environ.get("TF_ENABLE_ONEDNN_OPTS") not in ("0", "false")


@contextmanager
def in_halves(model: keras.Model) -> Iterator[None]:
    """What is traced within has its float32 convolutions of stride one, but for 1x1, in halves; for batches of one."""
    layers = [layer for layer in model.layers if _gains(layer)]
    try:
        for layer in layers:
            layer.convolution_op = _halve(layer)
        yield
    finally:
        for layer in layers:
            del layer.convolution_op  # the method of its class is found again


def _gains(layer: keras.layers.Layer) -> bool:
    if type(layer) is not keras.layers.Conv2D or layer.compute_dtype != "float32":
        return False
    windows = layer.kernel_size != (1, 1) and layer.strides == (1, 1)
    return windows and (layer.padding == "valid" or all(size % 2 for size in layer.kernel_size))


def _halve(layer: keras.layers.Conv2D) -> Convolution:
    """The layer's convolution, of one image: each half has the rows around it that its windows reach into."""
    reach, across = (
        rate * (size - 1) for rate, size in zip(layer.dilation_rate, layer.kernel_size, strict=True)
    )  # of a window, beyond its first row or column

    def convolve(inputs: Any, kernel: Any) -> Any:
        if layer.padding == "same":
            inputs = ops.pad(inputs, ((0, 0), (reach // 2, reach // 2), (across // 2, across // 2), (0, 0)))
        rows = ops.shape(inputs)[1] - reach
        half = (rows + 1) // 2
        both = ops.concatenate([inputs[:, : half + reach], inputs[:, rows - half :]], axis=0)
        made = ops.conv(both, kernel, padding="valid", dilation_rate=layer.dilation_rate)
        return ops.concatenate([made[:1], made[1:, 2 * half - rows :]], axis=1)  # the middle row of an odd number twice

    return convolve
