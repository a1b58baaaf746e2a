"""The wait for processes that Ray starts when it finds room for them, which may be never, and in silence."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from fcn_ray.errors import IncompleteError
from fcn_ray.reports.progress import format_duration
from fcn_ray.training.checkpoints import Checkpoint
from fcn_ray.training.preflight import Job

Hear = Callable[[dict[str, Any]], None]

LOOK_SECONDS = 10.0
"""Between two looks at processes that have not started; one that takes longer is told of."""

LEAST_SECONDS = 600.0
"""That they are waited for, or `workers.wait_seconds` when that is longer: the training is done but for its bundle."""


class Patience:
    """Of a training's driver, with the processes that make the bundle of a checkpoint."""

    def __init__(self, job: Job, checkpoint: Checkpoint, hear: Hear) -> None:
        self._job, self._checkpoint, self._hear = job, checkpoint, hear

    def wait(self, tasks: list[ray.ObjectRef], beginnings: list[ray.ObjectRef]) -> ray.ObjectRef:
        """The first of `tasks` that is done; `beginnings` are done when the process of a task has started.

        A process that works is waited for however long that takes, and so are the others, which may be there to follow
        it. Raises IncompleteError when none has started for too long.
        """
        since, told = time.monotonic(), False
        longest = max(LEAST_SECONDS, self._job.config.workers.wait_seconds)
        while not (done := ray.wait(tasks, timeout=LOOK_SECONDS)[0]):
            if ray.wait(beginnings, timeout=0)[0]:
                since = time.monotonic()
                continue
            if not told:
                message = "waiting for room to score the best checkpoint and to write it as a bundle"
                self._hear({"kind": "warning", "step": self._checkpoint.step, "message": message})
                told = True
            if time.monotonic() - since > longest:
                raise IncompleteError(
                    f"no room came within {format_duration(longest)} to make the bundle, as other jobs hold the "
                    f"cluster: the same command with --resume goes on from {self._job.config.out}"
                )
        return done[0]
