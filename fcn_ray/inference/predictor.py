"""Predictor: holds the network of a bundle in a Ray actor and gives every image of a chunk its mask.

One compiled function takes uint8 images and gives back masks, pixel counts and confidences; float logits never leave
the device. Images go through it together only when they pad to the same size: no image changes another's mask.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.errors import BundleError
from fcn_ray.images.geometry import group_by_padded_size, pad_batch, padded_size
from fcn_ray.inference.stages import PIXELS, replace_columns
from fcn_ray.tables.schema import (
    CLASS_PIXELS,
    ERROR,
    HEIGHT,
    MASK,
    MEAN_CONFIDENCE,
    MIN_CLASS_CONFIDENCE,
    OK,
    STATUS,
    WIDTH,
    trim_error,
)

logger = logging.getLogger(__name__)

PredictFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Any, Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one image."""

    mask: np.ndarray
    """(H, W) uint8 class ids."""
    class_pixels: np.ndarray
    """(num_classes,) int64 pixels of each class."""
    mean_confidence: float
    min_class_confidence: float


class Predictor:
    """Stage with state, one in each actor.

    Reads: pixels, height, width, status. Adds: mask (raw ids), class_pixels, confidences. Drops: pixels.
    """

    def __init__(self, bundle: str, digest: str, threads: int, batch_pixels: int) -> None:
        """Load the bundle and check that it is the one with `digest`; the first image finds the network warm."""
        self._batch_pixels = batch_pixels
        self._refused: BundleError | None = None
        try:
            self._predict = compile_predict(_load(bundle, digest), threads)
        except BundleError as error:  # kept for the first chunk: Ray makes mere text of what a constructor raises
            self._refused = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """One chunk, in its order; an image that cannot be predicted becomes a row with status `predict`."""
        if self._refused is not None:
            raise self._refused
        status, errors = table[STATUS].to_pylist(), table[ERROR].to_pylist()
        good = [i for i, s in enumerate(status) if s == OK]
        images = decode_pixels(table, good)
        found: list[Prediction | None] = [None] * len(table)
        for group in group_by_padded_size([image.shape[:2] for image in images], self._batch_pixels):
            for position, outcome in zip(group, self._predict_group([images[i] for i in group]), strict=True):
                row = good[position]
                if isinstance(outcome, Prediction):
                    found[row] = outcome
                else:
                    status[row], errors[row] = "predict", trim_error(f"{type(outcome).__name__}: {outcome}")
        return replace_columns(table, {STATUS: status, ERROR: errors} | prediction_columns(found), drop=[PIXELS])

    def _predict_group(self, images: list[np.ndarray]) -> list[Prediction | Exception]:
        """Predictions of images that pad to one size; when they fail together, each has its own try."""
        try:
            return list(self._predict_batch(images))
        except Exception as error:  # the row border: whatever the network raises belongs to these images
            if len(images) == 1:
                _try_out(self._predict)  # when nothing works any more it is the device, and no fault of the image
                return [error]
            logger.warning("a batch of %d images failed (%s); trying one by one", len(images), error)
            return [outcome for image in images for outcome in self._predict_group([image])]

    def _predict_batch(self, images: list[np.ndarray]) -> list[Prediction]:
        heights = np.array([image.shape[0] for image in images], np.int32)
        widths = np.array([image.shape[1] for image in images], np.int32)
        batch = pad_batch(images, *padded_size(*images[0].shape[:2]))
        masks, counts, mean, least = (np.asarray(part) for part in self._predict(batch, heights, widths))
        return [
            Prediction(masks[i, :h, :w], counts[i].astype(np.int64), float(mean[i]), float(least[i]))
            for i, (h, w) in enumerate(zip(heights, widths, strict=True))
        ]


def _load(folder: str, digest: str) -> Bundle:
    bundle = load_bundle(folder)
    if bundle.digest != digest:
        raise BundleError(
            f"{folder} has digest {bundle.digest}, the job was planned with {digest}: do not change a bundle while a "
            "job uses it; run the job again"
        )
    return bundle


def _try_out(predict: PredictFunction) -> None:
    """Predict one black square: compiles, warms up, and raises when the device does not work."""
    side = np.array([32], np.int32)
    predict(np.zeros((1, 32, 32, 3), np.uint8), side, side)


def compile_predict(bundle: Bundle, threads: int) -> PredictFunction:
    """The bundle's network as one compiled function that never retraces for a new size."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # several actors may share one device
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    from fcn_ray.models.prediction import build_predict_fn

    function = build_predict_fn(bundle.build(), bundle.preprocessing)
    signature = [
        tf.TensorSpec((None, None, None, 3), tf.uint8),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None,), tf.int32),
    ]
    compiled: PredictFunction = tf.function(function, input_signature=signature, autograph=False)
    _try_out(compiled)
    return compiled


def decode_pixels(table: pa.Table, rows: list[int]) -> list[np.ndarray]:
    """(H, W, 3) uint8 views of the pixels of `rows`; nothing is copied."""
    height, width = table[HEIGHT].to_pylist(), table[WIDTH].to_pylist()
    pixels = table[PIXELS].combine_chunks()
    return [np.frombuffer(pixels[i].as_buffer(), np.uint8).reshape(height[i], width[i], 3) for i in rows]


def prediction_columns(found: list[Prediction | None]) -> dict[str, pa.Array]:
    """Columns mask (raw ids, row-major), class_pixels and confidences; null where there is no prediction."""
    return {
        MASK: pa.array([p and p.mask.tobytes() for p in found], pa.large_binary()),
        CLASS_PIXELS: pa.array([p and p.class_pixels for p in found], pa.list_(pa.int64())),
        MEAN_CONFIDENCE: pa.array([p and p.mean_confidence for p in found], pa.float32()),
        MIN_CLASS_CONFIDENCE: pa.array([p and p.min_class_confidence for p in found], pa.float32()),
    }
