"""From pixels to masks in one function, and what is counted in them: on the device, or from arrays in memory."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from fcn_ray.config import Preprocessing
from fcn_ray.models.layers import Tensor
from fcn_ray.models.preprocessing import normalise

PredictFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
MaskFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

Top = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits (N, H, W, K) -> the first class of the largest (N, H, W), and that logit (N, H, W, 1)."""


def _top(logits: Tensor) -> tuple[Tensor, Tensor]:
    return ops.argmax(logits, axis=-1), ops.max(logits, axis=-1, keepdims=True)


def build_predict_fn(model: keras.Model, preprocessing: Preprocessing, top: Top = _top) -> PredictFn:
    """Function (images, sizes, cores) -> (masks, class_pixels, class_confidence).

    `images`, `sizes` and `masks` are those of `build_mask_fn`; `cores` int32 (N, 4), the first row and column and the
    end row and column of the part that counts; `class_pixels` int32 (N, K), pixels of each class in the core;
    `class_confidence` float32 (N, K), the sum over these pixels of the softmax probability of their class.

    Plain keras.ops; the caller compiles it.
    """
    find_masks = build_mask_fn(model, preprocessing, top)
    num_classes = model.output_shape[-1]

    def predict(images: Tensor, sizes: Tensor, cores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masks, confidence = find_masks(images, sizes)
        return masks, *_tally(masks, confidence, _inside(images, cores), num_classes)

    return predict


def build_mask_fn(model: keras.Model, preprocessing: Preprocessing, top: Top = _top) -> MaskFn:
    """Function (images, sizes) -> (masks, confidence), where the counting is left to another (`tally_arrays`).

    In: `images` uint8 RGB (N, H, W, 3), whole images or tiles, each at the top left of its place; `sizes` int32 (N, 2),
    their true heights and widths. H and W are the sizes rounded up to the grid of the network: images that pad to the
    same size go together, then each has the mask that it has alone. (Beyond them a network with biases is not zero, and
    the border would feel it.) What the caller put outside an image does not matter.

    Out: `masks` uint8 (N, H, W); `confidence` float32 (N, H, W), the softmax probability of the class of the mask; both
    of no meaning outside the image, where the confidence may be no number.

    Plain keras.ops; the caller compiles it, and may give a faster `top`.
    """

    def find_masks(images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        inside = _inside(images, ops.concatenate([ops.zeros_like(sizes), sizes], axis=1))
        # The zeros of PadToStride are zeros after normalisation, so these must be too.
        visible = normalise(images, preprocessing) * ops.cast(inside, "float32")[..., None]
        logits = model(visible, training=False)
        classes, largest = top(logits)
        # The softmax of the largest, without making the others.
        return ops.cast(classes, "uint8"), 1.0 / ops.sum(ops.exp(logits - largest), axis=-1)

    return find_masks


def tally_arrays(
    masks: np.ndarray, confidence: np.ndarray, cores: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """What `build_predict_fn` counts, of arrays in memory: int64 and float64 (N, K)."""
    pixels, totals = np.zeros((len(masks), num_classes), np.int64), np.zeros((len(masks), num_classes))
    for i, (top, left, bottom, right) in enumerate(cores):
        classes = masks[i, top:bottom, left:right].astype(np.intp).ravel()
        pixels[i] = np.bincount(classes, minlength=num_classes)
        weights = confidence[i, top:bottom, left:right].astype(np.float64).ravel()
        totals[i] = np.bincount(classes, weights, num_classes)
    return pixels, totals


def _inside(images: Tensor, boxes: Tensor) -> Tensor:
    """(N, H, W) bool: pixels in the box (first row, first column, end row, end column) of their image."""
    _, height, width, _ = ops.shape(images)
    top, left, bottom, right = (boxes[:, side, None, None] for side in range(4))
    rows = ops.arange(height, dtype="int32")[None, :, None]
    columns = ops.arange(width, dtype="int32")[None, None, :]
    in_rows = ops.logical_and(rows >= top, rows < bottom)
    return ops.logical_and(in_rows, ops.logical_and(columns >= left, columns < right))


def _tally(masks: Tensor, confidence: Tensor, inside: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Pixels int32 and sums of confidence float32 by class, (N, K) each, of the pixels `inside`.

    Class by class: a one-hot map would be as large as the logits, and scattered sums would not be reproducible. Rows
    first: TensorFlow on CPUs adds both axes up in one float32, which is off by thousandths after some 100,000 pixels; a
    row's pixels are counted without error.
    """
    confidence = ops.where(inside, confidence, 0.0)  # what lies outside may be no number
    pixels, totals = [], []
    for class_id in range(num_classes):
        hit = ops.cast(ops.logical_and(inside, ops.equal(masks, class_id)), "float32")
        pixels.append(ops.sum(ops.cast(ops.sum(hit, axis=2), "int32"), axis=1))
        totals.append(ops.sum(ops.sum(hit * confidence, axis=2), axis=1))
    return ops.stack(pixels, axis=1), ops.stack(totals, axis=1)
