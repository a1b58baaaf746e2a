"""What is in a table or tar: how many rows, of how many bytes, from its footer or its headers; no row is read."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from threading import Event
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.errors import SchemaError, StorageError
from fcn_ray.tables.columns import Columns, check_columns, read_table_schema
from fcn_ray.tables.pickles import read_footer
from fcn_ray.tables.sources import IMAGE_SUFFIXES, Source
from fcn_ray.tables.tars import walk_images

MAX_ROWS_PER_BYTE = 1000
"""A table that says to have more rows for each byte of its file is taken for damaged: its plan would never end."""


class RowGroup(NamedTuple):
    """Rows that are read together: a row group of a table, or one image of a tar; their bytes, uncompressed but for the
    images' own compression; in a tar, where they begin."""

    rows: int
    size: int
    offset: int = 0


def read_contents(uri: str, source: Source, columns: Columns, closed: Event | None = None) -> Iterable[RowGroup]:
    """The row groups of the table or tar that is stored at `uri`, in order; 16 bytes of memory for each.

    Raises StorageError when it cannot be opened (empty, cut off, damaged, something else), SchemaError when it has no
    images or its columns do not do. A tar, which is a request for each member, is left when `closed` is set.
    """
    return _read_tar(uri, source, closed or Event()) if source.kind == "tar" else _read_footer(uri, source, columns)


def _read_footer(uri: str, source: Source, columns: Columns) -> list[RowGroup]:
    try:
        with storage.open_file(uri) as file:
            metadata = read_footer(file)
        check_columns(read_table_schema(metadata), columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"not a readable Parquet file of {source.size} bytes: {error}") from error
    groups = [_describe_group(metadata.row_group(index)) for index in range(metadata.num_row_groups)]
    rows = [group.rows for group in groups]
    if sum(rows) != metadata.num_rows or min(rows, default=0) < 0 or sum(rows) > MAX_ROWS_PER_BYTE * source.size:
        raise StorageError(
            f"not a readable Parquet file of {source.size} bytes: its footer tells of {metadata.num_rows} rows, of "
            f"{sum(rows)} in {len(rows)} row groups"
        )
    return groups


def _describe_group(group: pq.RowGroupMetaData) -> RowGroup:
    """Not the size of its columns: pyarrow aborts when it is asked for one of some damaged footers."""
    return RowGroup(group.num_rows, max(group.total_byte_size, 0))


def _read_tar(uri: str, source: Source, closed: Event) -> Iterable[RowGroup]:
    sizes, offsets = array("q"), array("q")
    try:
        with storage.open_file(uri) as file:
            for member in walk_images(file):
                if closed.is_set():
                    raise StorageError("nobody waits for it any more")
                sizes.append(member.size)
                offsets.append(member.offset)
    except (OSError, ValueError) as error:
        raise StorageError(f"not a readable tar of {source.size} bytes: {error}") from error
    if not sizes:
        raise SchemaError(f"no member is an image, one of {' '.join(IMAGE_SUFFIXES)}")
    return (RowGroup(1, size, offset) for size, offset in zip(sizes, offsets, strict=True))
