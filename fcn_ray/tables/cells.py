"""Images in the cells of a table: bytes, image structs, or paths, which are read from where they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from fcn_ray import storage
from fcn_ray.errors import FcnRayError, UnavailableError, UnequippedError
from fcn_ray.tables import schema
from fcn_ray.tables.columns import is_text
from fcn_ray.tables.places import Places

T = TypeVar("T")
Item = TypeVar("Item")

MAX_FILE_BYTES = 1_000_000_000
"""Larger image files are `too_big` unread: no picture within the pixel limit needs that much."""

THREADS = 8
"""Files that are read at once: in a store each is a request, which mostly waits."""

UNREADABLE, TOO_BIG = "unreadable", "too_big"

Problem = tuple[str, str]
"""Status code and reason why an image could not be had."""


class Cells(NamedTuple):
    """The images of a column (large_binary), why some could not be had, and the versions of files that were read."""

    images: pa.ChunkedArray
    problems: Sequence[Problem | None]
    versions: Sequence[str | None]


def read_cells(column: pa.ChunkedArray, folder: str, places: Places) -> Cells:
    """Encoded images of a column of bytes, image structs or paths; paths are read, relative ones from `folder`."""
    nothing = [None] * len(column)
    if schema.is_binary(column.type):
        return Cells(column.cast(pa.large_binary()), nothing, nothing)
    if is_text(column.type):
        paths, images = text(column), pa.chunked_array([pa.nulls(len(column), pa.large_binary())])
    else:
        images = pc.struct_field(column, "bytes").cast(pa.large_binary())
        if images.null_count == 0 or column.type.get_field_index("path") < 0:
            return Cells(images, nothing, nothing)
        paths = text(pc.struct_field(column, "path"))
    cells = zip(images.to_pylist(), paths.to_pylist(), strict=True)
    found, problems, versions = zip(*map_at_once(partial(_read_cell, folder, places), list(cells)), strict=True)
    return Cells(pa.chunked_array([pa.array(found, pa.large_binary())]), problems, versions)


def map_at_once(function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    """`function` of each item, several at once, in their order; the first error is raised."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(THREADS, len(items))) as pool:
        return list(pool.map(function, items))


def too_big(size: int) -> Problem:
    """What to say of an image of so many bytes."""
    return TOO_BIG, f"the file has {size} bytes, more than {MAX_FILE_BYTES}"


def text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose strings are valid UTF-8, which Parquet files promise but pyarrow does not check."""
    if not is_text(column.type):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        cells = column.cast(pa.large_binary()).to_pylist()
        texts = [cell if cell is None else cell.decode(errors="replace") for cell in cells]
        return pa.chunked_array([pa.array(texts, column.type)])
    return column


def _read_cell(
    folder: str, places: Places, cell: tuple[bytes | None, str | None]
) -> tuple[bytes | None, Problem | None, str | None]:
    """The image of a cell that has these bytes, or else this path, and the version of the file that was read for it."""
    image, path = cell
    if image is not None or not path:
        return image, None, None
    try:
        entry, data = storage.fetch(places.resolve(path, folder), MAX_FILE_BYTES)
    except (UnavailableError, UnequippedError):  # else a row: the place is what the table says
        raise
    except FcnRayError as error:
        return None, (UNREADABLE, str(error)), None
    return data, None if data is not None else too_big(entry.size), entry.version
