"""A picture that every network is asked about when it is saved, and again wherever it is to predict.

Digests say that the weights are right; this says that the machine computes with them what the one did where they come
from: a broken device, driver or library gives masks too.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcn_ray.config import Precision
from fcn_ray.errors import BundleError

HEIGHT, WIDTH = 64, 96

EVERY = 4
"""Of so many rows and columns, one is kept of the mask."""

TOLERANCE: dict[Precision, tuple[float, float]] = {"float32": (0.9, 0.02), "bfloat16": (0.8, 0.05)}
"""Least share of pixels of the same class, and what the mean confidences may be apart: more than devices and libraries
make of one network, be it one that is sure of nothing."""

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Any, Any, Any]]
"""See fcn_ray.models.prediction; arrays in and out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a network makes of the picture."""

    mask: str
    """Class ids of every fourth pixel of every fourth row, base64."""
    confidence: float
    """Mean softmax probability of the class of each pixel."""


def picture() -> np.ndarray:
    """(64, 96, 3) uint8: ramps, stripes and squares, in whole numbers only, so that it is the same everywhere."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    squares = (rows // 16 + columns // 16) % 2 * 120
    return np.stack([rows * 3 + columns % 8 * 6, columns * 2 + rows % 4 * 10, squares + rows], axis=-1).astype(np.uint8)


def ask(predict: Predict, copies: int = 1) -> Answer:
    """The answer of a network, by its function of fcn_ray.models.prediction: to the last of a batch of `copies`."""
    pictures = np.repeat(picture()[None], copies, axis=0)
    sizes = np.array([[HEIGHT, WIDTH]] * copies, np.int32)
    boxes = np.array([[0, 0, HEIGHT, WIDTH]] * copies, np.int32)
    masks, pixels, confidence = (np.asarray(part)[-1] for part in predict(pictures, sizes, boxes))
    ids = masks[:HEIGHT:EVERY, :WIDTH:EVERY].astype(np.uint8).tobytes()
    return Answer(base64.b64encode(ids).decode(), float(confidence.sum() / pixels.sum()))


def check_answer(expected: Answer, found: Answer, precision: Precision, where: str) -> None:
    """Raise BundleError when they are further apart than is usual; `precision` is the coarser one of the two."""
    before, now = (np.frombuffer(base64.b64decode(answer.mask), np.uint8) for answer in (expected, found))
    equal, apart = float(np.mean(before == now)), abs(expected.confidence - found.confidence)
    least_equal, most_apart = TOLERANCE[precision]
    if not (equal >= least_equal and apart <= most_apart):  # so put that NaN is refused
        raise BundleError(
            f"{where} does not compute what this bundle's network computed when it was saved: {equal:.0%} of a test "
            f"picture's pixels have the same class, and its mean confidence is {found.confidence:.3f}, not "
            f"{expected.confidence:.3f}. Its device, driver or libraries may be broken: run the command elsewhere. If "
            "it is this machine that is right, delete `probe` and `checksum` from the bundle's model.json"
        )
