"""Patience with a store: what may pass is tried again, with pauses that grow, until the store or the patience is at its end."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from fcn_ray.errors import StorageError

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
"""Longest time that one request is tried again; FCN_RAY_PATIENCE_SECONDS in the environment overrules it."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0
"""Seconds. Each pause is a random part of a bound that doubles: many workers must not come back at one moment."""


class Passing(Exception):  # noqa: N818 (it is no error yet)
    """A request failed in a way that another try may mend."""


def patiently(uri: str, request: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """What `request` returns, tried again while it raises Passing. StorageError when it never stops."""
    patience = float(os.environ.get("FCN_RAY_PATIENCE_SECONDS", PATIENCE_SECONDS))
    start, bound, tries = time.monotonic(), FIRST_PAUSE, 0
    while True:
        try:
            return request()
        except Passing as error:
            tries += 1
            left = patience - (time.monotonic() - start)
            if left <= 0:
                raise StorageError(
                    f"{uri}: {error}, {tries} times in {patience:g} seconds. What is done stays done: "
                    "the same command goes on when the store answers again"
                ) from error
            sleep(min(random.uniform(0, bound), left))
            bound = min(2 * bound, LONGEST_PAUSE)
