"""What an object store answers a request with, and patience with one that is overloaded or out of reach."""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import TypeVar

from fcn_ray.errors import ConfigError, StorageError, UnavailableError
from fcn_ray.storage.uris import scheme_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
"""Longest time that one request is tried again; FCN_RAY_PATIENCE_SECONDS in the environment overrules it."""

TELL_SECONDS = 5.0
"""A request that has waited so long for a store that did answer before is told of in the log."""

_PLACES = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST", "az": "AZURE_STORAGE_ACCOUNT"}
"""Scheme -> the setting that says where its store is."""

_answered: set[str] = set()
"""Schemes of stores that have answered this process; one that never did may be asked for at a wrong place."""

_most: ContextVar[float] = ContextVar("most_patience", default=float("inf"))

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0
"""Seconds. Each pause is a random part of a bound that doubles: many workers must not come back at one moment."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a store says of an object: its bytes, a tag that changes with its content, and when it was modified, in
    seconds since 1970."""

    size: int
    etag: str
    modified: float | None = field(default=None, compare=False)


class Missing(StorageError):  # noqa: N818 (names say what was found)
    """There is no such object."""


class Taken(Exception):  # noqa: N818
    """The condition of a request does not hold: something is there already, or it is another version."""


class Passing(Exception):  # noqa: N818
    """A request failed in a way that another try may mend."""


@contextmanager
def with_patience(seconds: float) -> Iterator[None]:
    """Within, and in this thread, no request is tried again for longer than so many seconds."""
    before = _most.set(seconds)
    try:
        yield
    finally:
        _most.reset(before)


def _patience_seconds() -> float:
    told = os.environ.get("FCN_RAY_PATIENCE_SECONDS", str(PATIENCE_SECONDS))
    try:
        return float(told)
    except ValueError:
        raise ConfigError(f"FCN_RAY_PATIENCE_SECONDS is {told!r}: expected a number of seconds, such as 600") from None


def patiently(uri: str, request: Callable[[], T]) -> T:
    """What `request` returns, tried again while it raises Passing. UnavailableError when it never stops."""
    patience = min(_patience_seconds(), _most.get())
    start, bound, tries, told = monotonic(), FIRST_PAUSE, 0, False
    while True:
        try:
            found = request()
            _answered.add(scheme_of(uri))
            return found
        except (Missing, Taken):
            _answered.add(scheme_of(uri))
            raise
        except Passing as error:
            tries, waited = tries + 1, monotonic() - start
            left = patience - waited
            if left <= 0:
                raise UnavailableError(
                    f"{uri}: {error}, {tries} times in {patience:g} seconds. What is done stays done: "
                    f"the same command goes on when the store answers again{_hint(uri)}"
                ) from error
            if not told and (waited >= TELL_SECONDS or scheme_of(uri) not in _answered):
                logger.warning("%s: %s; tried again for up to %g seconds%s", uri, error, patience, _hint(uri))
                told = True
            sleep(min(random.uniform(0, bound), left))
            bound = min(2 * bound, LONGEST_PAUSE)


def _hint(uri: str) -> str:
    scheme = scheme_of(uri)
    return "" if scheme in _answered else f". It has not answered once: is {_PLACES[scheme]} right, and the network?"


def first_line(said: object) -> str:
    """The first line of an error or an answer, without the queries of URLs: they may carry signatures."""
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return re.sub(r"\?\S+", "?...", lines[0][:500]) if lines else type(said).__name__
