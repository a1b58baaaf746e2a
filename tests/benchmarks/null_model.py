"""A network that costs nothing: the class of a pixel is its strongest channel. So the engine around it can be measured.

python -m tests.benchmarks.null_model segment IN OUT --model BUNDLE ...

is `fcn-ray segment` with it; the bundle gives the classes only, three at least. NULL_MODEL_SECONDS in the environment
is a sleep for each chunk, NULL_MODEL_LOG a file that gets a line with the id of each chunk that was predicted.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pyarrow as pa

from fcn_ray.bundle import Bundle
from fcn_ray.inference.predictor import Prediction, decode_pixels, prediction_columns
from fcn_ray.inference.stages import PIXELS, replace_columns
from fcn_ray.tables.schema import CHUNK_ID, ENCODED, OK, STATUS

PAUSE, LOG = "NULL_MODEL_SECONDS", "NULL_MODEL_LOG"


class NullPredictor:
    """In the place of fcn_ray.inference.predictor.Predictor."""

    def __init__(self, bundle: Bundle, **_: object) -> None:
        self._classes = bundle.spec.num_classes
        self._pause = float(os.environ.get(PAUSE, "0"))

    def __call__(self, table: pa.Table) -> pa.Table:
        """One chunk."""
        time.sleep(self._pause)
        good = [row for row, status in enumerate(table[STATUS].to_pylist()) if status == OK]
        found: list[Prediction | None] = [None] * len(table)
        for row, image in zip(good, decode_pixels(table, good), strict=True):
            found[row] = _predict(image, self._classes)
        if log := os.environ.get(LOG):
            with open(log, "a", encoding="ascii") as file:
                file.write(f"{table[CHUNK_ID][0].as_py()}\n")
        return replace_columns(table, prediction_columns(found), drop=[PIXELS, ENCODED])


def predict_mask(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) uint8 of 0, 1 and 2."""
    return image.argmax(axis=2).astype(np.uint8)


def _predict(image: np.ndarray, num_classes: int) -> Prediction:
    prediction = Prediction(*image.shape[:2], num_classes)
    prediction.mask = predict_mask(image)
    prediction.class_pixels = np.bincount(prediction.mask.ravel(), minlength=num_classes)
    prediction._confidence = prediction.class_pixels * 1.0
    return prediction


def main() -> None:
    """The command line, with this network."""
    from fcn_ray.__main__ import main as run
    from fcn_ray.inference import execution
    from tests.benchmarks import null_model

    execution.Predictor = null_model.NullPredictor  # type: ignore[assignment,misc] # by its real name, for the workers
    run()


if __name__ == "__main__":
    main()
