"""Cutting inputs into chunks, the unit of work and of commit, and naming a chunk by what is in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.tables.contents import RowGroup
from fcn_ray.tables.sources import Piece, Source

Chunk = Sequence[Piece]


def chunk_id(chunk: Chunk, again: int = 0) -> str:
    """32 hexadecimal digits of the identity and rows of the chunk's inputs: never of parallelism, order or time.

    Rows that are listed again have the number of their plan in it, as `again`: they get an object of their own.
    """
    identity: list[list[object]] = [["retry", again]] if again else []
    identity += [[piece.path, piece.version, piece.kind, piece.first_row, piece.n_rows] for piece in chunk]
    return storage.digest(json.dumps(identity, separators=(",", ":")).encode())[:32]


def cut_chunks(
    sources: Iterable[Source], limits: ChunkConfig, contents: Callable[[Source], Iterable[RowGroup]]
) -> Iterator[Iterable[Chunk]]:
    """Chunks in the order of their inputs; those that come together must be planned together.

    All chunks of a table or tar come together, because a plan covers it or does not. Image files fill a chunk up to
    `limits.rows` files or `limits.bytes` bytes (a larger file is alone); a table between them ends it. `contents` gives
    the row groups of a table or tar, none when it is to be left out.
    """
    images: list[Piece] = []
    total = 0
    for source in sources:
        is_image = source.kind == "image"
        if images and (not is_image or len(images) == limits.rows or total + source.size > limits.bytes):
            yield [images]
            images, total = [], 0
        if is_image:
            images.append(Piece(source.path, source.version, source.kind, 0, 1, source.size))
            total += source.size
        else:
            yield cut_table(source, contents(source), limits)
    if images:
        yield [images]


def cut_table(source: Source, groups: Iterable[RowGroup], limits: ChunkConfig) -> Iterator[Chunk]:
    """Chunks of one table or tar, of at most `limits.rows` rows and, unless it is one row, about `limits.bytes` bytes.

    A row counts as the mean of its row group. A chunk ends at the last row-group border that leaves it at least half
    full; where there is none, it is full. So most row groups are read by one chunk only, and no chunk but the table's
    last is less than half full.
    """
    first = 0
    for rows, size, offset in _cut_rows(groups, limits):
        place = (size, offset, first) if source.kind == "tar" else (size,)
        yield [Piece(source.path, source.version, source.kind, first, rows, *place)]
        first += rows


def _cut_rows(groups: Iterable[RowGroup], limits: ChunkConfig) -> Iterator[RowGroup]:
    """Rows and bytes of each chunk, and the offset of its first row group."""
    rows = size = offset = 0
    for group in groups:
        left, mean = group.rows, -(-group.size // max(group.rows, 1))
        while left:
            offset = offset if rows else group.offset
            room = _room(limits, rows, size, mean)
            if left <= room:
                rows, size, left = rows + left, size + left * mean, 0
            elif rows and rows >= (rows + room + 1) // 2:  # ends at the border before this row group
                yield RowGroup(rows, size, offset)
                rows = size = 0
            else:
                yield RowGroup(rows + room, size + room * mean, offset)
                rows, size, left = 0, 0, left - room
    if rows:
        yield RowGroup(rows, size, offset)


def _room(limits: ChunkConfig, rows: int, size: int, mean: int) -> int:
    """How many rows of `mean` bytes still go into a chunk of `rows` rows and `size` bytes: one at least into none."""
    if size > limits.bytes:  # one row that is alone
        return 0
    free = (limits.bytes - size) // mean if mean else limits.rows
    return max(min(limits.rows - rows, free), 0 if rows else 1)
