"""Reading a row group piece by piece, forwards, without starting over for each piece.

Parquet can only be read from the start of a row group. Files often hold thousands of images in one, so that chunks of
64 would read it a hundred times over; a process that comes back for a later slice goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray import storage

_BATCH_ROWS = 32
"""Rows that are decoded at a time, so that skipping to the start of a slice holds few images."""

_READ_BUFFER = 1 << 20
"""Bytes read at a time from a column: with a buffer, pyarrow loads page by page rather than the whole row group."""

_WHOLE_BYTES = 32 << 20
"""Row groups up to this size are read whole. With a buffer, pyarrow allocates, and touches, what a damaged page header
says, which is up to 2 GiB; from memory it takes what is there."""


class _Key(NamedTuple):
    uri: str
    version: str
    group: int
    columns: tuple[str, ...]


class _Cursor:
    """An open row group and the place in it."""

    def __init__(self, key: _Key, batch_rows: int, metadata: pq.FileMetaData) -> None:
        self._file = storage.open_file(key.uri)
        size = metadata.row_group(key.group).total_byte_size  # not its columns': pyarrow aborts on some damaged ones
        parquet = pq.ParquetFile(
            self._file,
            metadata=metadata,
            pre_buffer=False,
            buffer_size=0 if 0 <= size <= _WHOLE_BYTES else _READ_BUFFER,
            page_checksum_verification=True,
        )
        self._batches = parquet.iter_batches(
            batch_rows, row_groups=[key.group], columns=list(key.columns), use_threads=False
        )
        self._rest: pa.RecordBatch | None = None
        self.position = 0
        self.size = metadata.row_group(key.group).num_rows

    def read(self, start: int, count: int) -> pa.Table:
        """Rows `start` to `start + count`; `start` is not before `position`."""
        parts, end = [], start + count
        while self.position < end:
            batch = self._rest if self._rest is not None else next(self._batches)
            used = min(batch.num_rows, end - self.position)
            skipped = max(0, min(batch.num_rows, start - self.position))
            if skipped < used:
                parts.append(batch.slice(skipped, used - skipped))
            self._rest = batch.slice(used) if used < batch.num_rows else None
            self.position += used
        return pa.Table.from_batches(parts)

    def close(self) -> None:
        self._file.close()


_idle: dict[_Key, _Cursor] = {}
"""At most one cursor, which waits for a later slice; whoever uses it takes it out."""


def read_slice(
    uri: str, version: str, metadata: pq.FileMetaData, group: int, columns: Sequence[str], start: int, count: int
) -> pa.Table:
    """Rows `start` to `start + count` of a row group; `version` tells an open file from one that took its place.

    `metadata` is its footer, which a caller with many row groups reads once: it is as long as they are many. Raises
    what storage and pyarrow raise, and ValueError when the row group is too short.
    """
    key = _Key(uri, version, group, tuple(sorted(columns)))
    try:
        return _read(key, metadata, start, count, _BATCH_ROWS)
    except pa.ArrowNotImplementedError:  # 2 GiB of images in one batch, in a struct: pyarrow would have to cut it
        return _read(key, metadata, start, count, 1)


def _read(key: _Key, metadata: pq.FileMetaData, start: int, count: int, batch_rows: int) -> pa.Table:
    cursor = _idle.pop(key, None)
    while _idle:
        _idle.popitem()[1].close()
    if cursor is None or cursor.position > start:
        cursor = _Cursor(key, batch_rows, metadata)
    try:
        table = cursor.read(start, count)
    except StopIteration:
        cursor.close()
        raise ValueError(f"it ends before row {start + count}") from None
    except BaseException:
        cursor.close()
        raise
    if cursor.position < cursor.size:
        _idle[key] = cursor
    else:
        cursor.close()
    return table
