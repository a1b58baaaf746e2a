"""From pixels to masks in one function on the device: nothing larger than a mask leaves it."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from fcn_ray.config import Preprocessing
from fcn_ray.models.layers import Tensor
from fcn_ray.models.preprocessing import normalise

PredictFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def build_predict_fn(model: keras.Model, preprocessing: Preprocessing) -> PredictFn:
    """Function (images, heights, widths) -> (masks, class_pixels, mean_confidence, min_class_confidence).

    In: `images` uint8 RGB (N, H, W, 3), each at the top left of its place; `heights`, `widths` int32 (N,), their true
    sizes. H and W are the multiples of 32 next above these: images that pad to the same size go together, then each has
    the mask that it has alone. (Beyond them a network with biases is not zero, and the border would feel it.) What the
    caller put outside an image does not matter.

    Out: `masks` uint8 (N, H, W), of no meaning outside the image; `class_pixels` int32 (N, K), pixels of each class
    inside it; `mean_confidence` float32 (N,), mean softmax probability of the class that each pixel was given;
    `min_class_confidence` float32 (N,), the same mean by class, of the least certain class in the mask.

    Plain keras.ops; the caller compiles it.
    """
    num_classes = model.output_shape[-1]

    def predict(images: Tensor, heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = _inside(images, heights, widths)
        # The zeros of PadToStride are zeros after normalisation, so these must be too.
        logits = model(ops.where(inside[..., None], normalise(images, preprocessing), 0.0), training=False)
        masks = ops.cast(ops.argmax(logits, axis=-1), "uint8")
        confidence = _top_probability(logits)
        pixels, totals = _tally(masks, confidence, inside, num_classes)
        mean = ops.sum(totals, axis=1) / ops.cast(ops.sum(pixels, axis=1), "float32")
        # A class without pixels has no mean; 1 keeps it from being the smallest.
        by_class = ops.where(pixels > 0, totals / ops.cast(ops.maximum(pixels, 1), "float32"), 1.0)
        return masks, pixels, mean, ops.min(by_class, axis=1)

    return predict


def _inside(images: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """(N, H, W) bool: pixels that belong to their image."""
    _, height, width, _ = ops.shape(images)
    rows = ops.arange(height, dtype="int32")[None, :, None] < heights[:, None, None]
    columns = ops.arange(width, dtype="int32")[None, None, :] < widths[:, None, None]
    return ops.logical_and(rows, columns)


def _top_probability(logits: Tensor) -> Tensor:
    """(N, H, W, K) -> (N, H, W): the largest softmax probability, without making the others."""
    top = ops.max(logits, axis=-1, keepdims=True)
    return 1.0 / ops.sum(ops.exp(logits - top), axis=-1)


def _tally(masks: Tensor, confidence: Tensor, inside: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Pixels int32 and sums of confidence float32 by class, (N, K) each, inside the images.

    Class by class: a one-hot map would be as large as the logits, and scattered sums would not be reproducible.
    """
    pixels, totals = [], []
    for class_id in range(num_classes):
        hit = ops.logical_and(inside, ops.equal(masks, class_id))
        pixels.append(ops.sum(ops.cast(hit, "int32"), axis=(1, 2)))
        totals.append(ops.sum(ops.where(hit, confidence, 0.0), axis=(1, 2)))
    return ops.stack(pixels, axis=1), ops.stack(totals, axis=1)
