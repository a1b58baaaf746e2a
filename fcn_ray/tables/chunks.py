"""Cutting inputs into chunks, the unit of work and of commit, and naming a chunk by what is in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.tables.sources import Piece, Source

Chunk = Sequence[Piece]


def chunk_id(chunk: Chunk, retry: int = 0) -> str:
    """32 hexadecimal digits of the identity and rows of the chunk's inputs: never of parallelism, order or time.

    Rows that are tried again have the number of their plan in it, as `retry`: they get an object of their own.
    """
    identity: list[list[object]] = [["retry", retry]] if retry else []
    identity += [[piece.path, piece.version, piece.kind, piece.first_row, piece.n_rows] for piece in chunk]
    return storage.digest(json.dumps(identity, separators=(",", ":")).encode())[:32]


def cut_chunks(
    sources: Iterable[Source], limits: ChunkConfig, row_groups: Callable[[Source], Sequence[int]]
) -> Iterator[Iterable[Chunk]]:
    """Chunks in the order of their inputs; those that come together must be planned together.

    All chunks of a table come together, because a plan covers it or does not. Image files fill a chunk up to
    `limits.rows` files or `limits.bytes` bytes (a larger file is alone); a table between them ends it. `row_groups`
    gives the rows of each row group of a table, none when it is to be left out.
    """
    images: list[Piece] = []
    total = 0
    for source in sources:
        is_table = source.kind == "parquet"
        if images and (is_table or len(images) == limits.rows or total + source.size > limits.bytes):
            yield [images]
            images, total = [], 0
        if is_table:
            yield cut_table(source, row_groups(source), limits.rows)
        else:
            images.append(Piece(source.path, source.version, source.kind, 0, 1, source.size))
            total += source.size
    if images:
        yield [images]


def cut_table(source: Source, row_groups: Sequence[int], rows: int) -> Iterator[Chunk]:
    """Chunks of at most `rows` rows of one table.

    A chunk ends at the last row-group border that leaves it at least half full; where there is none, it is full. So
    most row groups are read by one chunk only, and no chunk but the table's last is less than half full.
    """
    borders = list(accumulate(row_groups))
    first, border = 0, 0
    while borders and first < borders[-1]:
        end = min(first + rows, borders[-1])
        while border < len(borders) and borders[border] <= end:
            border += 1
        if border and borders[border - 1] - first >= (rows + 1) // 2:
            end = borders[border - 1]
        yield [Piece(source.path, source.version, source.kind, first, end - first, source.size)]
        first = end
