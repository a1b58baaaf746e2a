"""The learning rate of a step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class WarmupPoly(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """`rate * (1 - step/steps)^power`, times a linear warm-up over the first `warmup` steps.

    The poly schedule of DeepLab; the warm-up keeps the first steps of new layers on pretrained features small.
    """

    def __init__(self, rate: float, steps: int, warmup: int = 0, power: float = 0.9) -> None:
        self.rate, self.steps, self.warmup, self.power = rate, steps, warmup, power

    def __call__(self, step: Any) -> Any:
        """Rate of step number `step`, counted from 0: float32."""
        step = ops.cast(step, "float32")
        remaining = ops.maximum(1.0 - step / float(self.steps), 0.0)
        rise = ops.minimum((step + 1.0) / float(self.warmup), 1.0) if self.warmup else 1.0
        return self.rate * rise * ops.power(remaining, self.power)

    def get_config(self) -> dict[str, float]:
        """The constructor's arguments."""
        return {"rate": self.rate, "steps": self.steps, "warmup": self.warmup, "power": self.power}
