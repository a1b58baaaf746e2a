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

Call = Callable[[Any], Any]


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
            layer.call = _halve(layer)
        yield
    finally:
        for layer in layers:
            del layer.call  # the method of its class is found again


def _gains(layer: keras.layers.Layer) -> bool:
    if type(layer) is not keras.layers.Conv2D or layer.compute_dtype != "float32":
        return False
    windows = layer.kernel_size != (1, 1) and layer.strides == (1, 1)
    return windows and (layer.padding == "valid" or all(size % 2 for size in layer.kernel_size))


def _halve(layer: keras.layers.Conv2D) -> Call:
    """The layer for one image: each half has the rows beside it that its windows reach into.

    Bias and activation are in the halves too: TensorFlow fuses them with a convolution that they follow at once.
    """
    whole: Call = layer.call
    reach = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)  # of a window, beyond its first row
    lost, margin = (0, reach // 2) if layer.padding == "same" else (reach, reach)

    def call(inputs: Any) -> Any:
        height = ops.shape(inputs)[1]
        rows = height - lost
        half = (rows + 1) // 2
        cut = ops.minimum(half + margin, height)
        made = whole(ops.concatenate([inputs[:, :cut], inputs[:, height - cut :]], axis=0))
        return ops.concatenate([made[:1, :half], made[1:, cut - lost - (rows - half) :]], axis=1)

    return call
