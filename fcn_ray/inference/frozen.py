"""A network's weights as constants of its graph: oneDNN then lays them out as it likes, once.

What may change it has to take as it lies, and on CPUs without AVX-512 it has no fast convolution for that with a batch
of one: it makes a matrix of all windows, at two thirds of the speed, and where that would be larger than 1 GiB (3x3
over 256 channels of 360x360) it takes its reference code, at a hundredth of it. Seen with TensorFlow 2.21, on AVX2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

MOST_BYTES = 64_000_000
"""Of weights that are made constants, the smallest first: all convolutions of a whole VGG16, but for fc6 and fc7. A
process has thirteen copies of them once the graph is compiled (memory.py): with all 537 MB of that network it took a
minute of a core and 9 GB, and a single image was no faster."""


def freeze(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """`function`, which calls `model`, to be traced by TensorFlow: with the weights that the model has now."""
    import keras
    import tensorflow as tf

    values = [(variable, variable.numpy()) for variable in _smallest(model.variables)]

    def frozen(*arrays: Any) -> Any:
        constants = [(variable, tf.constant(value)) for variable, value in values]  # of the graph, so made within it
        with keras.StatelessScope(state_mapping=constants):
            return function(*arrays)

    return frozen


def _smallest(variables: list[keras.Variable]) -> list[keras.Variable]:
    """As many as have `MOST_BYTES` together."""
    found, total = [], 0
    for variable in sorted(variables, key=_count_bytes):
        total += _count_bytes(variable)
        if total > MOST_BYTES:
            break
        found.append(variable)
    return found


def _count_bytes(variable: keras.Variable) -> int:
    size: int = variable.value.shape.num_elements() * variable.value.dtype.size
    return size
