"""The loss: softmax cross entropy of every pixel, summed over the map (Long et al. 2015, section 3)."""

from __future__ import annotations

from keras import ops

from fcn_ray.models.layers import Tensor


def cross_entropy_sum(labels: Tensor, logits: Tensor, ignore_id: int) -> tuple[Tensor, Tensor]:
    """Sum of the per-pixel cross entropy over valid pixels, and their number: two float32 scalars.

    `labels` is an integer (N, H, W) of class ids and `ignore_id`, `logits` is float32 (N, H, W, K). A pixel of
    `ignore_id` adds exactly 0 to the sum, the number and the gradient. Other ids outside 0..K-1 are undefined here
    (backends differ: an error or NaN); labels are checked before training.

    A sum and a number rather than a mean: a mean over several workers must divide by the number of all of them, or
    pixels of workers with little valid area would weigh more.
    """
    valid = ops.not_equal(labels, ignore_id)
    # An ignored pixel needs some class to look up; where() below removes what it found, and its gradient.
    known = ops.where(valid, ops.cast(labels, "int32"), 0)
    losses = ops.sparse_categorical_crossentropy(known, logits, from_logits=True)
    total = ops.sum(ops.where(valid, losses, 0.0))
    # Counted as integers: float32 loses single pixels beyond 2**24 of them.
    count = ops.cast(ops.sum(ops.cast(valid, "int32")), "float32")
    return total, count
