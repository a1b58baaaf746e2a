"""What a training job prints while it runs: one line for each thing that happens, and a table after a validation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fcn_ray.reports.class_table import class_lines
from fcn_ray.reports.console import percent, say
from fcn_ray.reports.progress import format_duration

WINDOW = 100
"""Step records: the time left follows the speed of these last ones, pauses for validation between them included."""


class TrainingLines:
    """Prints a training job's records as they come. Kinds that it does not know are passed over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps, self._epochs = 0, 0
        self._classes: Sequence[str] = ()
        self._recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "start": self._on_start,
            "workers": self._on_workers,
            "step": self._on_step,
            "epoch": self._on_epoch,
            "checkpoint": self._on_checkpoint,
            "warning": self._on_warning,
            "bundle": self._on_bundle,
        }

    def hear(self, record: Mapping[str, Any]) -> None:
        """Take one record: {"kind": "start" | "workers" | "step" | "epoch" | ..., ...}."""
        handler = self._handlers.get(record["kind"])
        if handler is not None:
            handler(record)

    def _on_start(self, record: Mapping[str, Any]) -> None:
        self._steps, self._epochs, self._classes = record["steps"], record["epochs"], record["classes"]
        images = f"{record['images']} images"
        if record["val_images"]:
            images += f" ({record['val_images']} more to validate)"
        say(f"training {record['network']} on {images}: {self._steps} steps in {self._epochs} epochs")
        if record["step"]:
            say(f"going on from step {record['step']}/{self._steps}")

    def _on_workers(self, record: Mapping[str, Any]) -> None:
        self._recent.clear()  # the minutes in which a group dies and another starts say nothing of its speed
        say(f"starting {record['count']} worker{'s' if record['count'] > 1 else ''} at step {record['step']}")

    def _on_step(self, record: Mapping[str, Any]) -> None:
        left = self._seconds_left(record["step"])
        say(
            f"step {record['step']}/{self._steps}  epoch {record['epoch']}/{self._epochs}  loss {_loss(record)}  "
            f"{record['images_per_second']:.1f} images/s  input wait {percent(record['input_wait'])}"
            + ("" if left is None else f"  {format_duration(left)} left")
        )

    def _on_epoch(self, record: Mapping[str, Any]) -> None:
        line = f"epoch {record['epoch']}: loss {_loss(record)}, {record['images_per_second']:.1f} images/s"
        val = record.get("val")
        if val:
            line += f", validation mean IoU {percent(val['mean_iou'])}, pixel accuracy {percent(val['pixel_accuracy'])}"
        say(f"{line}, input wait {percent(record['input_wait'])}")
        if val:
            names = self._classes or [f"class {index}" for index in range(len(val["class_iou"]))]
            for row in class_lines(names, val["class_iou"]):
                say(row)

    def _on_checkpoint(self, record: Mapping[str, Any]) -> None:
        say(f"checkpoint of step {record['step']}: {record['folder']}")

    def _on_warning(self, record: Mapping[str, Any]) -> None:
        say(f"warning: {record['message']} (step {record['step']})")

    def _on_bundle(self, record: Mapping[str, Any]) -> None:
        say(f"bundle {record['folder']} holds epoch {record['epoch']} (digest {record['digest'][:12]})")

    def _seconds_left(self, step: int) -> float | None:
        """Time to the last step at the speed of the recent records; None until two of them tell."""
        if self._recent and step <= self._recent[-1][1]:
            self._recent.clear()  # a step that is done again: the workers went back to a checkpoint
        self._recent.append((self._clock(), step))
        (first_time, first), (last_time, last) = self._recent[0], self._recent[-1]
        return (self._steps - last) * (last_time - first_time) / (last - first) if last > first else None


def _loss(record: Mapping[str, Any]) -> str:
    """Mean loss of the steps; there is none when all of them were left out."""
    return "-" if record["loss"] is None else f"{record['loss']:.4f}"
