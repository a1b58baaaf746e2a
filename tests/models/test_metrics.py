from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fcn_ray.errors import DataError
from fcn_ray.models.metrics import confusion_matrix, scores

VOID = 255
LABELS = np.uint8([[0, 0, 0, 1], [1, 1, VOID, VOID]])
MASKS = np.uint8([[0, 0, 1, 1], [1, 0, 0, 1]])


def test_rows_are_truth_and_columns_are_predictions() -> None:
    found = confusion_matrix(LABELS, MASKS, num_classes=3, ignore_id=VOID)
    assert found.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]]
    assert found.dtype == np.int64


def test_a_prediction_outside_the_classes_is_wrong_and_counted() -> None:
    labels, masks = np.int64([0, 0, 0, 1]), np.int64([0, VOID, -1, 1])
    found = confusion_matrix(labels, masks, num_classes=2, ignore_id=VOID)
    assert found.tolist() == [[1, 0, 2], [0, 1, 0]]
    result = scores(found)
    assert result.pixel_accuracy == 0.5
    assert result.class_iou == (1 / 3, 1.0)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 label pixels .* example 7; expected 0..2, or 255"):
        confusion_matrix(np.uint8([0, 7]), np.uint8([0, 0]), 3, VOID)


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError, match=r"\(2, 4\) and mask of shape \(4, 2\)"):
        confusion_matrix(LABELS, MASKS.T, 3, VOID)


def test_the_four_metrics_by_hand() -> None:
    # Class 0: 4 of 5 right, 1 more claimed. Class 1: 2 of 3 right, 1 more. Class 2: never. Class 3: claimed only.
    confusion = np.array([[4, 0, 0, 1, 0], [1, 2, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    result = scores(confusion)
    assert result.pixel_accuracy == 6 / 8
    assert result.mean_accuracy == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert result.class_iou[:2] == (4 / 6, 2 / 3)
    assert math.isnan(result.class_iou[2])
    assert result.class_iou[3] == 0
    assert result.mean_iou == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert result.frequency_weighted_iou == pytest.approx(5 / 8 * 4 / 6 + 3 / 8 * 2 / 3)


def _score_py(labels: np.ndarray, masks: np.ndarray, classes: int) -> tuple[float, float, float, float]:
    """The authors' score.py (shelhamer/fcn.berkeleyvision.org), line by line: `fast_hist` and `do_seg_tests`."""
    a, b = labels.flatten(), masks.flatten()
    k = (a >= 0) & (a < classes)
    hist = np.bincount(classes * a[k].astype(int) + b[k], minlength=classes**2).reshape(classes, classes)
    with np.errstate(invalid="ignore"):
        overall = np.diag(hist).sum() / hist.sum()
        acc = np.diag(hist) / hist.sum(1)
        iu = np.diag(hist) / (hist.sum(1) + hist.sum(0) - np.diag(hist))
    freq = hist.sum(1) / hist.sum()
    return overall, float(np.nanmean(acc)), float(np.nanmean(iu)), (freq[freq > 0] * iu[freq > 0]).sum()


def test_void_and_absent_classes_count_as_in_the_papers_score_py() -> None:
    """Class 2 is claimed and never true, class 3 is neither, class 4 is true and never claimed; two pixels are void."""
    labels = np.uint8([[0, 0, 0, 0, 1], [1, 1, VOID, VOID, 4]])
    masks = np.uint8([[0, 0, 0, 1, 1], [1, 2, 3, 0, 0]])
    by_hand = (5 / 8, (3 / 4 + 2 / 3 + 0) / 3, (3 / 5 + 2 / 4 + 0 + 0) / 4, 4 / 8 * 3 / 5 + 3 / 8 * 2 / 4)
    assert _score_py(labels, masks, 5) == pytest.approx(by_hand)
    result = scores(confusion_matrix(labels, masks, 5, VOID))
    found = (result.pixel_accuracy, result.mean_accuracy, result.mean_iou, result.frequency_weighted_iou)
    assert found == pytest.approx(by_hand)
    assert result.class_iou == pytest.approx((3 / 5, 2 / 4, 0, math.nan, 0), nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_four_metrics_are_those_of_score_py(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, masks = rng.choice([0, 1, 2, 4, VOID], (7, 9)), rng.choice([0, 1, 2, 5], (7, 9))
    result = scores(confusion_matrix(labels, masks, 7, VOID))
    found = (result.pixel_accuracy, result.mean_accuracy, result.mean_iou, result.frequency_weighted_iou)
    assert found == pytest.approx(_score_py(labels, masks, 7), rel=1e-12)


def test_uint8_ids_of_many_classes_do_not_wrap() -> None:
    found = confusion_matrix(np.uint8([199, 1]), np.uint8([198, 1]), 200, VOID)
    assert found[199, 198] == found[1, 1] == 1
    assert found.sum() == 2


def test_nothing_counted_gives_no_scores() -> None:
    values = scores(np.zeros((2, 3), np.int64)).to_dict()
    assert values == {
        "pixel_accuracy": None,
        "mean_accuracy": None,
        "mean_iou": None,
        "frequency_weighted_iou": None,
        "class_iou": [None, None],
    }


def test_scores_become_json() -> None:
    values = json.loads(json.dumps(scores(confusion_matrix(LABELS, MASKS, 3, VOID)).to_dict(), allow_nan=False))
    assert values["pixel_accuracy"] == 4 / 6
    assert values["class_iou"] == [0.5, 0.5, None]


def test_matrices_add_up_beyond_32_bits() -> None:
    part = confusion_matrix(LABELS, MASKS, 3, VOID) * 2**40
    assert (part + part)[0, 0] == 2**42
    assert scores(part + part).pixel_accuracy == 4 / 6


def test_scores_are_exact_beyond_32_bits() -> None:
    """8,600 images of 500 x 500 pixels of one class are more than 2**31, and their sums more than the cells."""
    cell = 2**31 + 1
    result = scores(np.array([[cell, cell, 0], [cell, 3 * cell, 0]], np.int64))
    assert (result.pixel_accuracy, result.mean_accuracy) == (4 / 6, (1 / 2 + 3 / 4) / 2)
    assert result.class_iou == (1 / 3, 3 / 5)
    assert result.frequency_weighted_iou == pytest.approx(1 / 3 * 1 / 3 + 2 / 3 * 3 / 5)
