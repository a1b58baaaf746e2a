"""The four FCN metrics, from one confusion matrix over the whole set (Long et al. 2015, section 5; numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_ray.errors import DataError

Confusion = npt.NDArray[np.int64]
"""(K, K + 1) pixel counts: row = true class, column = predicted class, last column = predictions outside 0..K-1.

Those are wrong, and must not vanish: they stay in the sum of their row. Matrices of the parts of a set add up.
"""


@dataclass(frozen=True, slots=True)
class Scores:
    """The four metrics, each in 0..1; NaN where there is nothing to count."""

    pixel_accuracy: float
    """Correct pixels / all pixels."""
    mean_accuracy: float
    """Mean over the classes in the labels of correct pixels / pixels of the class."""
    mean_iou: float
    """Mean over the classes in labels or masks of intersection / union."""
    frequency_weighted_iou: float
    """Sum over the classes of intersection / union, weighted by their share of the pixels."""
    class_iou: tuple[float, ...]
    """Intersection / union by class id; NaN for a class in neither labels nor masks."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        names = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")
        values: dict[str, Any] = {name: _or_none(getattr(self, name)) for name in names}
        return values | {"class_iou": [_or_none(value) for value in self.class_iou]}


def confusion_matrix(
    labels: npt.NDArray[np.integer], masks: npt.NDArray[np.integer], num_classes: int, ignore_id: int
) -> Confusion:
    """Confusion of integer `labels` and `masks` of one shape, over the pixels whose label is not `ignore_id`.

    Raises DataError when shapes differ, or when a label is neither a class id nor `ignore_id`.
    """
    if labels.shape != masks.shape:
        raise DataError(
            f"label of shape {labels.shape} and mask of shape {masks.shape} differ; a mask has the size of its image: "
            "compare masks with the labels of the same images, not resized"
        )
    valid = labels != ignore_id
    truth, found = labels[valid].astype(np.int64), masks[valid].astype(np.int64)
    unknown = (truth < 0) | (truth >= num_classes)
    if unknown.any():
        raise DataError(
            f"{np.count_nonzero(unknown)} label pixels hold ids outside the classes, for example {truth[unknown][0]}; "
            f"expected 0..{num_classes - 1}, or {ignore_id} for void: check the class list or map the ids"
        )
    found = np.where((found >= 0) & (found < num_classes), found, num_classes)
    counts = np.bincount(truth * (num_classes + 1) + found, minlength=num_classes * (num_classes + 1))
    return counts.astype(np.int64).reshape(num_classes, num_classes + 1)


def scores(confusion: Confusion) -> Scores:
    """The metrics of a confusion matrix, by the formulas of the authors' score.py: means leave absent classes out."""
    correct = np.diagonal(confusion)
    truth = confusion.sum(axis=1)
    union = truth + confusion[:, : len(confusion)].sum(axis=0) - correct
    iou = _ratio(correct, union)
    present = truth > 0
    return Scores(
        pixel_accuracy=float(_ratio(correct.sum(), truth.sum())),
        mean_accuracy=_mean(_ratio(correct, truth)),
        mean_iou=_mean(iou),
        frequency_weighted_iou=float(_ratio((truth[present] * iou[present]).sum(), truth.sum())),
        class_iou=tuple(float(value) for value in iou),
    )


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`part` / `whole` in float64, NaN where `whole` is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
