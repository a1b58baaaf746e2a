"""The network of a bundle, compiled on a Keras backend: uint8 images in, masks and counts out."""

from __future__ import annotations

import gc
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from fcn_ray.bundle import Bundle
from fcn_ray.config import Precision, Preprocessing
from fcn_ray.errors import ConfigError
from fcn_ray.inference.precision import SLOW, cpu_emulates_bfloat16
from fcn_ray.machine import count_cpus
from fcn_ray.models.probe import ask, check_answer

logger = logging.getLogger(__name__)

AMPERE = (8, 0)
"""Compute capability of the first NVIDIA GPUs with bfloat16."""

PredictFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Network:
    """A bundle's network, ready to predict."""

    predict: PredictFunction
    """See fcn_ray.models.prediction; arrays in and out."""
    num_classes: int
    grid: int
    """Images are padded to multiples of it."""
    halo: int | None
    """Pixels around the core of a tile; None when the network has no tiles."""
    untileable: str = ""
    """Why it has none."""
    lanes: int = 1
    """Passes that are made at once."""


def try_out(predict: PredictFunction) -> None:
    """Predict one black square: compiles, warms up, and raises when the device does not work."""
    predict(np.zeros((1, 32, 32, 3), np.uint8), np.array([[32, 32]], np.int32), np.array([[0, 0, 32, 32]], np.int32))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Without Python's garbage collector: imports and graphs make a million objects, nearly all of which stay; going
    through them again and again takes a fifth of the time of TensorFlow's import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collections()
def compile_network(bundle: Bundle, threads: int, precision: Precision) -> Network:
    """The bundle's network, compiled and warm, on the Keras backend of KERAS_BACKEND (TensorFlow unless it is set).

    With bfloat16 the layers up to fc7 compute in it; logits and what is made of them stay float32. `threads` of
    TensorFlow, 0 for all cores; JAX takes its own. Raises ConfigError when the backend is not there, BundleError when
    this machine computes something else than the one that saved the bundle.
    """
    _check_backend(os.environ.setdefault("KERAS_BACKEND", "tensorflow"))
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow leaves it off on CPUs without AVX-512
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX: several actors may share one device
    import keras

    on_tensorflow = keras.backend.backend() == "tensorflow"
    if on_tensorflow:
        _set_up_tensorflow(threads)
    if precision == "bfloat16" and (slow := _emulating_device(on_tensorflow)):
        logger.warning(SLOW, slow)
    from fcn_ray.models.coordinates import halo
    from fcn_ray.models.prediction import build_predict_fn

    model = bundle.build(precision)
    if on_tensorflow:
        predict = _compile_tensorflow(model, bundle.preprocessing)
    else:
        predict = _compile_jax(build_predict_fn(model, bundle.preprocessing), model)
    coarser: Precision = "bfloat16" if "bfloat16" in (precision, bundle.precision) else "float32"
    where = f"{platform.node()} ({keras.backend.backend()}, {precision})"
    # oneDNN has other convolutions for a batch of one; JAX would compile once more for nothing.
    for copies in (1, 2) if on_tensorflow else (1,):
        answer = ask(predict, copies)
        if bundle.answer:
            check_answer(bundle.answer, answer, coarser, where)
    try:
        margin, why = halo(model), ""
    except ValueError as error:
        margin, why = None, str(error)
    one_at_a_time = not on_tensorflow or _has_gpu()  # JAX would compile for every size of batch once more
    lanes = 1 if one_at_a_time else threads or count_cpus()
    return Network(predict, bundle.spec.num_classes, bundle.spec.grid, margin, why, lanes)


def _check_backend(name: str) -> None:
    if name not in ("tensorflow", "jax"):
        raise ConfigError(f"KERAS_BACKEND is {name}: masks are predicted on tensorflow or jax; set one, or unset it")
    if find_spec(name) is None:
        raise ConfigError(f"KERAS_BACKEND is {name}, which is not installed: install it on every node, or unset it")


def share_cores(sharers: int) -> int:
    """Threads for each of so many processes on this machine; 0, the backend's own number, for one that has it all."""
    cpus = count_cpus()
    return 0 if sharers == 1 and cpus == os.cpu_count() else max(1, cpus // sharers)


def _has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _set_up_tensorflow(threads: int) -> None:
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # several actors may share one device
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)


def _emulating_device(on_tensorflow: bool) -> str | None:
    """What this process predicts on, when it computes in bfloat16 by way of float32."""
    if on_tensorflow:
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(gpu)
            generation = details.get("compute_capability")
            return f"the GPU {details.get('device_name')}" if generation and generation < AMPERE else None
    else:
        import jax

        if jax.default_backend() != "cpu":
            return None
    return "the CPU" if cpu_emulates_bfloat16() else None


def _top_tensorflow(logits: Any) -> tuple[Any, Any]:
    """As fcn_ray.models.prediction has it. Keras' argmax looks for negative zeros before, at three times the cost; and
    CPUs find both at once in half the time, which on GPUs nobody has measured."""
    import tensorflow as tf

    if _has_gpu():
        return tf.argmax(logits, axis=-1, output_type=tf.int32), tf.reduce_max(logits, axis=-1, keepdims=True)
    largest, classes = tf.math.top_k(logits, k=1)
    return classes[..., 0], largest


def _compile_tensorflow(model: Any, preprocessing: Preprocessing) -> PredictFunction:
    """One graph for all sizes, traced once. On GPUs it counts, too, for nothing larger than a mask shall leave them."""
    import tensorflow as tf

    from fcn_ray.inference.frozen import freeze
    from fcn_ray.models.prediction import build_mask_fn, build_predict_fn, tally_arrays

    images = tf.TensorSpec((None, None, None, 3), tf.uint8)
    sizes, cores = tf.TensorSpec((None, 2), tf.int32), tf.TensorSpec((None, 4), tf.int32)

    def trace(function: Callable[..., Any], *signature: Any) -> Any:
        return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()

    if _has_gpu():
        predict: PredictFunction = trace(build_predict_fn(model, preprocessing, _top_tensorflow), images, sizes, cores)
        return predict
    find_masks = trace(freeze(build_mask_fn(model, preprocessing, _top_tensorflow), model), images, sizes)
    num_classes = model.output_shape[-1]  # or the function below would keep the model, and its weights a second time

    def predict_and_count(images: np.ndarray, sizes: np.ndarray, cores: np.ndarray) -> tuple[Any, Any, Any]:
        masks, confidence = map(np.asarray, find_masks(images, sizes))
        return masks, *tally_arrays(masks, confidence, cores, num_classes)

    return predict_and_count


def _compile_jax(function: Callable[..., Any], model: Any) -> PredictFunction:
    """One program for each size of batch; the weights are arguments, or each would hold a copy of them."""
    import jax
    import keras

    def stateless(values: list[Any], *arrays: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return function(*arrays)

    compiled = jax.jit(stateless)
    values = [variable.value for variable in model.variables]
    return lambda *arrays: compiled(values, *arrays)
