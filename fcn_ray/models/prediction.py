"""From pixels to masks in one function on the device: nothing larger than a mask leaves it."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from fcn_ray.config import Preprocessing
from fcn_ray.models.layers import Tensor
from fcn_ray.models.preprocessing import normalise

PredictFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


Top = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits (N, H, W, K) -> the first class of the largest (N, H, W), and that logit (N, H, W, 1)."""


def _top(logits: Tensor) -> tuple[Tensor, Tensor]:
    return ops.argmax(logits, axis=-1), ops.max(logits, axis=-1, keepdims=True)


def build_predict_fn(model: keras.Model, preprocessing: Preprocessing, top: Top = _top) -> PredictFn:
    """Function (images, sizes, cores) -> (masks, class_pixels, class_confidence).

    In: `images` uint8 RGB (N, H, W, 3), whole images or tiles, each at the top left of its place; `sizes` int32 (N, 2),
    their true heights and widths; `cores` int32 (N, 4), the first row and column and the end row and column of the part
    that counts. H and W are the sizes rounded up to the grid of the network: images that pad to the same size go
    together, then each has the mask that it has alone. (Beyond them a network with biases is not zero, and the border
    would feel it.) What the caller put outside an image does not matter.

    Out: `masks` uint8 (N, H, W), of no meaning outside the image; `class_pixels` int32 (N, K), pixels of each class in
    the core; `class_confidence` float32 (N, K), the sum over these pixels of the softmax probability of their class.

    Plain keras.ops; the caller compiles it, and may give a faster `top`.
    """
    num_classes = model.output_shape[-1]

    def predict(images: Tensor, sizes: Tensor, cores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inside = _inside(images, ops.concatenate([ops.zeros_like(sizes), sizes], axis=1))
        # The zeros of PadToStride are zeros after normalisation, so these must be too.
        visible = normalise(images, preprocessing) * ops.cast(inside, "float32")[..., None]
        logits = model(visible, training=False)
        classes, largest = top(logits)
        masks = ops.cast(classes, "uint8")
        # The softmax of the largest, without making the others.
        confidence = 1.0 / ops.sum(ops.exp(logits - largest), axis=-1)
        return masks, *_tally(masks, confidence, _inside(images, cores), num_classes)

    return predict


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
