"""A training as TensorBoard event files."""

from __future__ import annotations

import time
from typing import Any

from fcn_ray import storage
from fcn_ray.errors import ConfigError
from fcn_ray.reports.tracking import Outcome, Record, scalars


class TensorBoard:
    """Writes a training's curves into `folder`, where `tensorboard --logdir` finds them.

    A training that goes on writes a new file there. It tells readers to forget what came after its first step, so that
    steps that are done again have one value. Raises ConfigError when the package tensorboard is not installed.
    """

    def __init__(self, folder: str) -> None:
        # tensorboard's own EventFileWriter loads TensorFlow where it is installed: 7 s and half a gigabyte on the
        # driver. The two parts that it is made of do not.
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(f'TensorBoard: {error}; pip install "fcn_ray[tensorboard]", or leave it out') from error
        self._events, self._summaries, self._writer_of = event_pb2, summary_pb2, RecordWriter
        self._folder = storage.local_path(folder)
        self._writer: Any = None
        self._classes: tuple[str, ...] = ()

    def hear(self, record: Record) -> None:
        """Take one record: {"kind": "start" | "step" | "epoch" | ..., ...}."""
        if record["kind"] == "start":
            self._classes = tuple(record["classes"])
        if record["kind"] in ("start", "workers"):
            log = self._events.SessionLog(status=self._events.SessionLog.START)
            self._write(step=record["step"] + 1, session_log=log)
        values = scalars(record, self._classes)
        if values:
            summary = self._summaries.Summary
            curves = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._write(step=record["step"], summary=summary(value=curves))

    def close(self, outcome: Outcome) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, **fields: Any) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"events.out.tfevents.{time.time_ns()}"  # readers go by the order of names
            self._writer = self._writer_of(open(path, "xb"))  # noqa: SIM115 (open for as long as the training is)
            self._append(file_version="brain.Event:2")
        self._append(**fields)

    def _append(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
        self._writer.flush()
