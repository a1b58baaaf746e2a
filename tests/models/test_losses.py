from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from fcn_ray.config import LossConfig
from fcn_ray.models import losses
from fcn_ray.models.losses import Loss, build_loss

pytestmark = pytest.mark.keras

VOID = 255
LOGITS = np.float32([[[[0, 0], [math.log(3), 0]], [[0, math.log(7)], [50, -50]]]])
LABELS = np.int32([[[0, 1], [0, VOID]]])
"""By hand: probabilities 1/2, 1/4 and 1/8 of the true class; the last pixel is void."""

SETTINGS: list[dict[str, Any]] = [
    *(
        settings | {"reduction": reduction}
        for settings in ({"kind": "cross_entropy"}, {"kind": "focal", "gamma": 2.0}, {"kind": "focal", "gamma": 0.5})
        for reduction in ("mean_valid", "sum")
    ),
    {"kind": "dice"},
]
"""Every kind in each of its reductions; dice is a ratio and has none."""

WEIGHTS = (0.5, 3.0, 1.25)


def _loss(classes: int = 3, weights: tuple[float, ...] | None = None, **settings: Any) -> Loss:
    return build_loss(LossConfig(**settings), classes, VOID, weights)


def _value(loss: Loss, labels: np.ndarray, logits: np.ndarray) -> float:
    return float(loss.combine(loss.terms(labels, logits)))


def _gradient(loss: Loss, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    watched = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        value = loss.combine(loss.terms(labels, watched))
    gradient: np.ndarray = tape.gradient(value, watched).numpy()
    return gradient


def _random(shape: tuple[int, ...] = (4, 5, 6), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels with void and logits for three classes."""
    rng = np.random.default_rng(seed)
    return rng.choice([0, 1, 2, VOID], size=shape), rng.normal(size=(*shape, 3)).astype(np.float32)


def _expected(labels: np.ndarray, logits: np.ndarray, weights: Any, **settings: Any) -> float:
    """The loss as the papers write it, pixel by pixel, in float64."""
    valid = labels != VOID
    scores = np.exp(logits[valid].astype(np.float64))
    p = scores / scores.sum(axis=-1, keepdims=True)
    truth = np.eye(p.shape[1])[labels[valid]]
    weights = np.ones(p.shape[1]) if weights is None else np.array(weights)
    if settings["kind"] == "dice":
        classes = [c for c in range(p.shape[1]) if truth[:, c].any()]
        dice = [2 * (p * truth)[:, c].sum() / (p[:, c].sum() + truth[:, c].sum()) for c in classes]
        return float(1 - np.average(dice, weights=weights[classes]))
    true = (p * truth).sum(axis=1)
    pixels = truth @ weights * (1 - true) ** settings.get("gamma", 0) * -np.log(true)
    return float(pixels.sum() if settings.get("reduction") == "sum" else pixels.mean())


# ------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_terms_of_cross_entropy_are_the_sum_over_valid_pixels_and_their_number(dtype: type) -> None:
    total, count = _loss(2).terms(LABELS.astype(dtype), LOGITS)
    assert float(total) == pytest.approx(math.log(2) + math.log(4) + math.log(8), rel=1e-6)
    assert float(count) == 3
    assert total.dtype == count.dtype == tf.float32


def test_cross_entropy_by_hand() -> None:
    total = math.log(2) + math.log(4) + math.log(8)
    assert _value(_loss(2, reduction="sum"), LABELS, LOGITS) == pytest.approx(total, rel=1e-6)
    assert _value(_loss(2), LABELS, LOGITS) == pytest.approx(total / 3, rel=1e-6)


def test_a_weighted_mean_is_over_pixels_and_not_over_weights() -> None:
    total = 10 * math.log(2) + 0.5 * math.log(4) + 10 * math.log(8)
    assert _value(_loss(2, (10, 0.5), reduction="sum"), LABELS, LOGITS) == pytest.approx(total, rel=1e-6)
    assert _value(_loss(2, (10, 0.5)), LABELS, LOGITS) == pytest.approx(total / 3, rel=1e-6)


def test_focal_loss_by_hand() -> None:
    total = (1 / 2) ** 2 * math.log(2) + (3 / 4) ** 2 * math.log(4) + 3 * (7 / 8) ** 2 * math.log(8)
    total += 2 * (1 / 2) ** 2 * math.log(2)
    assert _value(_loss(2, (3, 1), kind="focal", reduction="sum"), LABELS, LOGITS) == pytest.approx(total, rel=1e-6)


def test_dice_by_hand() -> None:
    # Probabilities of class 0: 1/2, 3/4 and 1/8, of which the first and the last are true. Class 2 is nowhere.
    logits = np.concatenate([LOGITS, np.full((1, 2, 2, 1), -200, np.float32)], axis=-1)
    first = 2 * (1 / 2 + 1 / 8) / (1 / 2 + 3 / 4 + 1 / 8 + 2)
    second = 2 * (1 / 4) / (1 / 2 + 1 / 4 + 7 / 8 + 1)
    assert _value(_loss(kind="dice"), LABELS, logits) == pytest.approx(1 - (first + second) / 2, rel=1e-6)
    weighted = _loss(3, (3, 1, 100), kind="dice")
    assert _value(weighted, LABELS, logits) == pytest.approx(1 - (3 * first + second) / 4, rel=1e-6)
    terms = weighted.terms(LABELS, logits).numpy()
    np.testing.assert_allclose(terms, [5 / 8, 1 / 4, 0, 11 / 8, 13 / 8, 0, 2, 1, 0], rtol=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_loss_is_that_of_its_paper(settings: dict[str, Any], weights: Any) -> None:
    labels, logits = _random()
    found = _value(_loss(3, weights, **settings), labels, logits)
    assert found == pytest.approx(_expected(labels, logits, weights, **settings), rel=1e-5)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    labels, logits = _random()
    plain, focal = _loss(3, WEIGHTS), _loss(3, WEIGHTS, kind="focal", gamma=0)
    assert _value(focal, labels, logits) == _value(plain, labels, logits)
    np.testing.assert_array_equal(_gradient(focal, labels, logits), _gradient(plain, labels, logits))


def test_dice_is_zero_for_the_truth_and_one_for_its_opposite() -> None:
    labels = _random()[0]
    logits = 100 * np.eye(3, dtype=np.float32)[np.where(labels == VOID, 0, labels)]
    assert _value(_loss(kind="dice"), labels, logits) == pytest.approx(0, abs=1e-6)
    assert _value(_loss(kind="dice"), labels, -logits) == pytest.approx(1, abs=1e-6)


# ----------------------------------------------------------------------------------------------- gradients and void


def test_gradient_is_softmax_minus_truth() -> None:
    gradient = _gradient(_loss(2, reduction="sum"), LABELS, LOGITS)
    np.testing.assert_allclose(gradient[0, 0], [[-1 / 2, 1 / 2], [3 / 4, -3 / 4]], atol=1e-6)
    np.testing.assert_allclose(gradient[0, 1, 0], [-7 / 8, 7 / 8], atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradient_is_that_of_differences(settings: dict[str, Any]) -> None:
    labels, logits = _random((1, 2, 3), seed=3)
    found = _gradient(_loss(3, WEIGHTS, **settings), labels, logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[place] = 1e-5
        up, down = (_expected(labels, logits + sign * step, WEIGHTS, **settings) for sign in (1, -1))
        assert found[place] == pytest.approx((up - down) / 2e-5, abs=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_void_adds_exactly_nothing(settings: dict[str, Any]) -> None:
    labels, logits = _random()
    loss = _loss(3, WEIGHTS, **settings)
    assert not _gradient(loss, labels, logits)[labels == VOID].any()
    other = logits.copy()
    other[labels == VOID] = [[70, -70, 3]]
    np.testing.assert_array_equal(loss.terms(labels, other), loss.terms(labels, logits))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_nothing_but_void_is_zero_and_not_nan(settings: dict[str, Any]) -> None:
    labels, logits = np.full((1, 2, 3), VOID), _random((1, 2, 3))[1]
    loss = _loss(3, WEIGHTS, **settings)
    assert not loss.terms(labels, logits).numpy().any()
    assert _value(loss, labels, logits) == 0
    assert not _gradient(loss, labels, logits).any()


@pytest.mark.parametrize("size", [0, 1e-20, 1e-7, 1e-4, 16, 17, 90, 1e4, 1e30])
@pytest.mark.parametrize("settings", [*SETTINGS, {"kind": "focal", "gamma": 0.01}], ids=str)
def test_no_logits_are_so_extreme_that_the_gradient_is_not_finite(settings: dict[str, Any], size: float) -> None:
    labels = np.array([[[0, 1, VOID]]])
    logits = np.float32(size) * np.float32([[[[1, -1, 0], [1, -1, 0], [1, -1, 0]]]])
    loss = _loss(3, WEIGHTS, **settings)
    assert math.isfinite(_value(loss, labels, logits))
    assert np.isfinite(_gradient(loss, labels, logits)).all()


# --------------------------------------------------------------------------------------- sums over pixels and parts


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_the_sum_over_the_map_is_that_of_its_pixels_and_so_is_the_gradient(kind: str) -> None:
    """R11: what makes learning from whole images equal to learning from each of their pixels."""
    labels, logits = _random((1, 3, 4))
    loss = _loss(3, WEIGHTS, kind=kind, reduction="sum")
    pixels = [(labels[:, i : i + 1, j : j + 1], logits[:, i : i + 1, j : j + 1]) for i, j in np.ndindex(3, 4)]
    assert _value(loss, labels, logits) == pytest.approx(sum(_value(loss, *pixel) for pixel in pixels), rel=1e-6)
    gradients = np.array([_gradient(loss, *pixel) for pixel in pixels]).reshape(logits.shape)
    np.testing.assert_allclose(_gradient(loss, labels, logits), gradients, rtol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_terms_of_the_parts_of_a_batch_add_up_to_the_loss_of_the_whole(settings: dict[str, Any]) -> None:
    """What makes a step of several workers equal to the step of one."""
    labels, logits = _random()
    labels[0] = VOID
    loss = _loss(3, WEIGHTS, **settings)
    parts = [loss.terms(labels[i : i + 1], logits[i : i + 1]) for i in range(4)]
    assert float(loss.combine(sum(parts))) == pytest.approx(_value(loss, labels, logits), rel=1e-6)


def test_a_class_that_only_one_part_holds_counts_as_one() -> None:
    """Dice of the whole step is not the mean of the dice of its parts."""
    labels, logits = _random((2, 1, 4))
    labels[0], labels[1] = 0, 1
    loss = _loss(kind="dice")
    parts = [loss.terms(labels[i : i + 1], logits[i : i + 1]) for i in range(2)]
    alone = [float(loss.combine(part)) for part in parts]
    assert float(loss.combine(sum(parts))) != pytest.approx(sum(alone) / 2, rel=1e-2)
    assert float(loss.combine(sum(parts))) == pytest.approx(_expected(labels, logits, None, kind="dice"), rel=1e-5)


# ------------------------------------------------------------------------------------------------ numbers and guards


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_half_precision_logits_give_float32(settings: dict[str, Any], dtype: tf.DType) -> None:
    labels, logits = _random((1, 300, 400))  # a sum that float16 cannot hold
    short = tf.cast(logits, dtype)
    loss = _loss(3, WEIGHTS, **settings)
    terms = loss.terms(labels, short)
    assert terms.dtype == loss.combine(terms).dtype == tf.float32
    exact = _expected(labels, tf.cast(short, tf.float32).numpy(), WEIGHTS, **settings)
    assert float(loss.combine(terms)) == pytest.approx(exact, rel=1e-4)


def test_sums_over_many_pixels_stay_exact() -> None:
    labels = _random((2, 400, 500))[0]
    logits = np.broadcast_to(np.log(np.float32([1, 2, 7])), (*labels.shape, 3))  # probabilities 0.1, 0.2 and 0.7
    valid = int((labels != VOID).sum())
    np.testing.assert_allclose(_loss(kind="dice").terms(labels, logits)[3:6], valid * np.array([0.1, 0.2, 0.7]), 3e-6)
    total = np.dot(-np.log([0.1, 0.2, 0.7]), [(labels == c).sum() for c in range(3)])
    assert float(_loss().terms(labels, logits)[0]) == pytest.approx(total, rel=1e-6)


def test_pixels_are_counted_beyond_the_whole_numbers_of_float32() -> None:
    count = losses._count(np.ones((2**24 + 16, 2), bool), axis=(0,))
    assert count.dtype == tf.float32
    assert count.numpy().tolist() == [2**24 + 16] * 2


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_ignored_id_may_be_any(settings: dict[str, Any]) -> None:
    labels, logits = _random()
    labels[labels == 1] = VOID
    other = build_loss(LossConfig(**settings), 3, 1, WEIGHTS)
    assert _value(other, np.where(labels == VOID, 1, labels), logits) == _value(
        _loss(3, WEIGHTS, **settings), labels, logits
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_losses_compile_for_sizes_that_are_not_known(settings: dict[str, Any]) -> None:
    labels, logits = _random()
    loss = _loss(3, WEIGHTS, **settings)
    pixels = (None, None, None)
    signature = [tf.TensorSpec(pixels, tf.int64), tf.TensorSpec((*pixels, 3), tf.float32)]
    compiled: Callable[..., Any] = tf.function(
        lambda truth, scores: loss.combine(loss.terms(truth, scores)), input_signature=signature, autograph=False
    )
    assert float(compiled(labels, logits)) == pytest.approx(_value(loss, labels, logits), rel=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "dice"])
def test_there_is_a_weight_for_each_class(kind: str) -> None:
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        _loss(3, (1, 2), kind=kind)
