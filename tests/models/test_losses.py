from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.models.losses import cross_entropy_sum

pytestmark = pytest.mark.keras

VOID = 255
LOGITS = np.float32([[[[0, 0], [math.log(3), 0]], [[0, math.log(7)], [50, -50]]]])
LABELS = np.int32([[[0, 0], [0, VOID]]])
"""By hand: probabilities 1/2, 3/4 and 1/8 of the true class; the last pixel is void."""


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_sum_over_valid_pixels_and_their_number(dtype: type) -> None:
    total, count = cross_entropy_sum(LABELS.astype(dtype), LOGITS, VOID)
    assert float(total) == pytest.approx(math.log(2) + math.log(4 / 3) + math.log(8), rel=1e-6)
    assert float(count) == 3
    assert total.dtype == count.dtype == tf.float32


def test_gradient_is_softmax_minus_truth_and_exactly_zero_on_void() -> None:
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total, _ = cross_entropy_sum(LABELS, logits, VOID)
    gradient = tape.gradient(total, logits).numpy()
    np.testing.assert_allclose(gradient[0, 0], [[-1 / 2, 1 / 2], [-1 / 4, 1 / 4]], atol=1e-6)
    np.testing.assert_allclose(gradient[0, 1, 0], [-7 / 8, 7 / 8], atol=1e-6)
    assert not gradient[0, 1, 1].any()


def test_nothing_but_void_is_zero_and_not_nan() -> None:
    total, count = cross_entropy_sum(np.full((1, 2, 2), VOID), LOGITS, VOID)
    assert (float(total), float(count)) == (0, 0)


def test_parts_of_a_batch_add_up() -> None:
    """What makes a step of several workers equal to the step of one."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 5, 6, 3)).astype(np.float32)
    labels = rng.choice([0, 1, 2, VOID], size=(4, 5, 6))
    parts = np.array([cross_entropy_sum(labels[i : i + 1], logits[i : i + 1], VOID) for i in range(4)])
    np.testing.assert_allclose(cross_entropy_sum(labels, logits, VOID), parts.sum(axis=0), rtol=1e-6)
