"""Weights as bytes: the safetensors format, named by the variables' paths. No pickle, no code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import safetensors
import safetensors.numpy
from keras import ops

from fcn_ray.errors import BundleError, StorageError


def dump_weights(model: keras.Model) -> bytes:
    """The weights of `model`; states of random generators are no weights. BundleError when one is not finite."""
    # safetensors takes the memory as it lies, so it must lie in the order of the indices.
    arrays = {weight.path: np.asarray(ops.convert_to_numpy(weight), order="C") for weight in model.weights}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BundleError(f"weight {name} is not finite: the network has diverged; save an earlier checkpoint")
    return bytes(safetensors.numpy.save(arrays))


def assign_weights(model: keras.Model, file: Path, where: str) -> None:
    """Set all weights of `model` from `file`, which came from `where`; no more than one of them is in memory twice.

    Raises BundleError, and sets nothing, unless the file holds finite float32 arrays of exactly the names and shapes of
    the weights.
    """
    weights = {weight.path: weight for weight in model.weights}
    with _readable(where), safetensors.safe_open(file, "numpy") as arrays:
        found = set(arrays.keys())
        if found != weights.keys():
            missing, unknown = sorted(weights.keys() - found), sorted(found - weights.keys())
            raise BundleError(
                f"{where} does not fit the network of its spec: missing {missing[:5]}, unknown {unknown[:5]}; "
                "get the bundle again, or use the fcn_ray that wrote it"
            )
        for name, weight in weights.items():
            _check_array(arrays.get_tensor(name), tuple(weight.shape), f"{where}: {name}")
        for name, weight in weights.items():
            weight.assign(arrays.get_tensor(name))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """BundleError for what safetensors says of a file, StorageError when it cannot be read."""
    try:
        yield
    except (safetensors.SafetensorError, AttributeError) as error:  # the latter: a type that NumPy has not
        raise BundleError(
            f"{where} is not a safetensors file of NumPy types ({error}); get the bundle again"
        ) from error
    except OSError as error:
        raise StorageError(f"{where} cannot be read: {error.strerror or error}") from error


def _check_array(array: np.ndarray, shape: tuple[int, ...], where: str) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise BundleError(
            f"{where} is {array.dtype} {array.shape}, the spec needs float32 {shape}; get the bundle again"
        )
    if not np.isfinite(array).all():
        raise BundleError(f"{where} holds NaN or infinite values; use the bundle of another checkpoint")
