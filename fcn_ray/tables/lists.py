"""Inputs that a text file names, one path or URI on a line: `@list.txt`.

Relative ones lie in the folder of the list. Blank lines and those that begin with "#" say nothing. A list is sorted in
memory, which takes a few times its own size; what it names is asked for a thousand lines at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from fcn_ray import storage
from fcn_ray.errors import ConfigError, FcnRayError, StorageError, UnavailableError, UnequippedError

_BATCH_LINES = 1000
_THREADS = 16
"""Lines whose files are asked for at once: each is a request when they are in a store."""

_BLANKS = " \t\r\ufeff"
"""Around a line, these are not part of it: Windows ends lines and begins files in its own way."""


def read_list(uri: str, on_duplicate: Callable[[str], None]) -> Iterator[str]:
    """The distinct lines of a list, by their UTF-8 bytes. Raises ConfigError when it is not text."""
    lines, previous = _sorted_lines(uri), ""
    for start in range(0, len(lines), _BATCH_LINES):
        for line in lines.slice(start, _BATCH_LINES).to_pylist():
            if line == previous:
                on_duplicate(line)
            else:
                yield line
            previous = line


def _sorted_lines(uri: str) -> pa.LargeStringArray:
    try:
        text = pa.array([storage.read_bytes(uri)], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise ConfigError(f"list {uri} is not UTF-8 text; expected a path or URI on each line") from error
    lines = pc.utf8_trim(pc.split_pattern(text, "\n").flatten(), _BLANKS)
    lines = lines.filter(pc.invert(pc.or_(pc.equal(lines, ""), pc.starts_with(lines, "#"))))
    return lines.take(pc.sort_indices(lines))


def stat_listed(paths: Iterator[str], locate: Callable[[str], str]) -> Iterator[tuple[str, storage.Entry | Exception]]:
    """Each path with what is stored there, or why that cannot be had.

    A place that is not for us is a fact about the line, as it is about a cell of a table. Raises UnavailableError and
    UnequippedError: a store that is silent, and a machine that cannot ask it, tell nothing of a line.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(paths, _BATCH_LINES)):
            yield from zip(batch, pool.map(partial(_stat, locate), batch), strict=True)


def _stat(locate: Callable[[str], str], path: str) -> storage.Entry | Exception:
    try:
        uri = locate(path)
        if storage.is_local(uri) and os.path.isdir(storage.local_path(uri)):
            raise StorageError(f"{uri} is a folder, and a list names files: give the folder as the input")
        return storage.stat(uri)
    except (UnavailableError, UnequippedError):
        raise
    except FcnRayError as error:
        return error
