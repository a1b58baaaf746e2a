"""What the commands print: plain lines that read well in a terminal and in a job's log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fcn_ray.reports.progress import format_duration


def say(text: str = "") -> None:
    """One line on standard output, at once (a job's log must not lag behind the job)."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class TrainingLines:
    """Prints a training job's records as they come: a line every few seconds, and one for each epoch."""

    def __init__(self, interval_seconds: float = 10.0) -> None:
        self._interval = interval_seconds
        self._steps = 0
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def hear(self, record: Mapping[str, Any]) -> None:
        """Take one record: {"kind": "start" | "step" | "epoch" | "bundle", ...}."""
        getattr(self, f"_on_{record['kind']}")(record)

    def _on_start(self, record: Mapping[str, Any]) -> None:
        self._steps = record["steps"]
        say(f"training {record['network']} on {record['images']} images, {record['steps']} steps; starting workers")

    def _on_step(self, record: Mapping[str, Any]) -> None:
        now, step = time.monotonic(), record["step"]
        if self._first is None:
            self._first = (now, step)
        if now - self._last < self._interval or now == self._first[0]:
            return
        self._last = now
        rate = (step - self._first[1]) / (now - self._first[0])
        left = format_duration((self._steps - step) / rate) if rate else "?"
        say(
            f"step {step}/{self._steps}  epoch {record['epoch']}  loss {record['loss']:.4f}  "
            f"{rate * record['images']:.1f} images/s  {left} left"
        )

    def _on_epoch(self, record: Mapping[str, Any]) -> None:
        line = f"epoch {record['epoch']}: loss {record['loss']:.4f}, {record['images_per_second']:.1f} images/s"
        if "val" in record:
            val = record["val"]
            line += f", validation mean IoU {percent(val['mean_iou'])}, pixel accuracy {percent(val['pixel_accuracy'])}"
        say(f"{line}, input wait {percent(record['input_wait'])}")

    def _on_bundle(self, record: Mapping[str, Any]) -> None:
        say(f"bundle {record['folder']} holds epoch {record['epoch']} (digest {record['digest'][:12]})")


def print_lines(lines: Iterable[str]) -> None:
    """A report, line by line."""
    for line in lines:
        say(line)


def print_settings(rows: Sequence[tuple[str, str, str]]) -> None:
    """Settings as YAML-like lines with their meaning."""
    width = max(len(key) for key, _, _ in rows)
    for key, default, meaning in rows:
        say(f"{key:<{width}}  {default:<12}  {meaning}")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """(name, value) pairs as two columns."""
    rows = list(facts)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def percent(value: float | None) -> str:
    """0.8512 -> "85.1 %"; a class that does not occur has no value."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"
