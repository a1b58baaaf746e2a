"""What a step descends: cross entropy (Long et al. 2015, section 3), focal loss or soft dice, over many workers.

A loss is two plain functions: `terms` sums over the valid pixels of one worker, `combine` makes the loss of the terms
summed over all of them. Sums add up, means and ratios do not: so W workers take exactly the step that one takes on the
same images (fcn.md R11). Everything is float32, whatever the precision of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from keras import ops

from fcn_ray.config import LossConfig
from fcn_ray.models.layers import Tensor

Weights = npt.NDArray[np.float32]

SMALLEST_MISS = 1e-8
"""What 1 - p is kept above. In float32 it is 0 or more than 5e-8."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a step is `combine` of the sum over all workers of their `terms`."""

    terms: Callable[[Tensor, Tensor], Tensor]
    """(labels, logits) -> float32 (T,), sums over this worker's valid pixels; differentiable in the logits.

    Labels are integer (N, H, W) class ids and the ignore id, logits any float (N, H, W, K). A pixel of the ignore id
    adds exactly 0 to the terms and the gradient. Other ids outside 0..K-1 are undefined here (backends differ: an error
    or NaN); labels are checked as they are read."""
    combine: Callable[[Tensor], Tensor]
    """float32 (T,) terms of all workers -> the loss, a float32 scalar; finite when no pixel is valid."""
    additive: bool
    """The terms are (sum, number), and the loss is the sum times something that only the number says: gradients of the
    sums of parts of a step add up to that of the step."""


def build_loss(
    config: LossConfig, num_classes: int, ignore_id: int, class_weights: Sequence[float] | None = None
) -> Loss:
    """The loss of `config`, with one factor for each class, by id, or none.

    The factors are passed resolved: `config.class_weights` may only say how to find them. Raises ValueError when there
    are not as many as classes.
    """
    weights = None if class_weights is None else np.asarray(class_weights, np.float32)
    if weights is not None and weights.shape != (num_classes,):
        raise ValueError(f"{weights.size} class weights for {num_classes} classes: give one for each")
    if config.kind == "dice":
        shares = np.ones(num_classes, np.float32) if weights is None else weights
        terms = partial(_dice_terms, num_classes=num_classes, ignore_id=ignore_id)
        return Loss(terms, partial(_combine_dice, weights=shares), additive=False)
    gamma = config.gamma if config.kind == "focal" else 0.0
    terms = partial(_pixel_terms, ignore_id=ignore_id, weights=weights, gamma=gamma)
    return Loss(terms, _combine_mean if config.reduction == "mean_valid" else _combine_sum, additive=True)


# ------------------------------------------------------------------------------------- cross entropy and focal loss


def _pixel_terms(labels: Tensor, logits: Tensor, *, ignore_id: int, weights: Weights | None, gamma: float) -> Tensor:
    """(2,): the sum of the valid pixels' losses, each times the weight of its true class, and their number."""
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, ignore_id)
    # An ignored pixel needs some class to look up; where() below removes what it found, and its gradient.
    known = ops.where(valid, labels, 0)
    losses = ops.sparse_categorical_crossentropy(known, ops.cast(logits, "float32"), from_logits=True)
    if gamma:
        losses = losses * _focus(losses, gamma)
    if weights is not None:
        losses = losses * ops.take(weights, known)
    total = ops.sum(ops.where(valid, losses, 0.0))
    return ops.stack([total, _count(valid)])


def _focus(losses: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma of pixels whose cross entropy, -ln p, is `losses` (Lin et al. 2017, equation 4).

    1 - p is kept off 0: there the derivative of a power below 1 is infinite, and times the cross entropy, 0, it is NaN.
    """
    return ops.power(ops.maximum(1.0 - ops.exp(-losses), SMALLEST_MISS), gamma)


def _combine_mean(totals: Tensor) -> Tensor:
    """Mean over the valid pixels. Of a weighted loss too: divided by their number, not by the sum of their weights.

    Else the weight of a rare class would cancel in the steps that hold little besides it.
    """
    return totals[0] / ops.maximum(totals[1], 1.0)


def _combine_sum(totals: Tensor) -> Tensor:
    """Sum over the map (the paper)."""
    return totals[0]


# ------------------------------------------------------------------------------------------------------- soft dice


def _dice_terms(labels: Tensor, logits: Tensor, *, num_classes: int, ignore_id: int) -> Tensor:
    """(3 K,): for each class the intersection, then the sums of probabilities, then the numbers of true pixels."""
    labels = ops.cast(labels, "int32")[..., None]
    valid = ops.not_equal(labels, ignore_id)
    truth = ops.logical_and(valid, ops.equal(labels, ops.arange(num_classes, dtype="int32")))
    probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1)
    found = _sum_by_class(ops.where(truth, probabilities, 0.0))
    claimed = _sum_by_class(ops.where(valid, probabilities, 0.0))
    return ops.concatenate([found, claimed, _count(truth, axis=(0, 1, 2))])


def _combine_dice(totals: Tensor, *, weights: Weights) -> Tensor:
    """One minus 2 intersection / (probabilities + truth), the weighted mean over the classes in the step's labels.

    Milletari et al. 2016 for many classes, with plain sums below the line (Drozdzal et al. 2016; they square the
    probabilities), and over the pixels of the whole step rather than image by image, where a class of few pixels is
    missing more often than not. Classes that are not in the labels have no overlap to reach and are left out: what the
    softmax gives them is missing in the classes that are. So nothing divides by 0 and no smoothing is needed: a perfect
    prediction has a loss of 0. Without any valid pixel the loss is 0.
    """
    found, claimed, true = ops.unstack(ops.reshape(totals, (3, -1)), 3)
    present = true > 0
    weighted = ops.where(present, weights, 0.0)
    losses = 1.0 - 2.0 * found / ops.where(present, claimed + true, 1.0)
    total = ops.sum(weighted)
    return ops.sum(weighted * losses) / ops.where(total > 0, total, 1.0)


def _sum_by_class(maps: Tensor) -> Tensor:
    """(N, H, W, K) -> (K,), one axis after the other.

    Over all three at once TensorFlow adds pixel by pixel to one float32 on CPUs: 3e-3 off after 300,000 equal ones.
    """
    return ops.sum(ops.sum(ops.sum(maps, axis=2), axis=1), axis=0)


def _count(hits: Tensor, axis: tuple[int, ...] | None = None) -> Tensor:
    """float32 number of true elements. Counted as integers: float32 loses single pixels beyond 2**24 of them."""
    return ops.cast(ops.sum(ops.cast(hits, "int32"), axis=axis), "float32")
