"""Which images a step takes: the seeded order of an epoch, and how workers share what is left of it.

The order of an epoch is a pure function of (row groups, seed, epoch). Row groups are shuffled, and rows within windows
of them: a reading task holds a window, or one row group if that is more. What is left of an epoch is a few ranges of
that order; a checkpoint in the middle of an epoch holds them, and any number of workers can go on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WINDOW_ROWS, WINDOW_BYTES = 2048, 256 * 10**6
"""Rows that are shuffled together, as encoded images usually about 200 MB, and the bytes that end a window before it
has so many. A reading task holds them all: that many bytes, and those of one row group at most."""

Ranges = tuple[tuple[int, int], ...]
"""Rows of an epoch's order as (start, stop), in the order in which they are used."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One row group of a Parquet file."""

    path: str
    key: str
    """Its path below the data set's folder: what names its rows, wherever the data set lies."""
    row_group: int
    first_row: int
    n_rows: int
    n_bytes: int
    """Uncompressed; with the number of rows it tells other data apart."""


@dataclass(frozen=True, slots=True)
class Read:
    """One reading task: rows of a few pieces, in the order in which they are to be delivered."""

    pieces: tuple[Piece, ...]
    rows: np.ndarray
    """(N, 2) int32: index into `pieces`, row within it."""


def plan_epoch(
    pieces: tuple[Piece, ...],
    seed: int,
    epoch: int,
    window_rows: int = WINDOW_ROWS,
    window_bytes: float = WINDOW_BYTES,
) -> list[Read]:
    """The rows of one epoch in a seeded order, in windows of whole pieces. Every row comes once."""
    rng = np.random.default_rng([seed, epoch])
    reads: list[Read] = []
    window: list[Piece] = []
    n_rows = n_bytes = 0
    shuffled = [pieces[i] for i in rng.permutation(len(pieces))]
    for position, piece in enumerate(shuffled, 1):
        window.append(piece)
        n_rows, n_bytes = n_rows + piece.n_rows, n_bytes + piece.n_bytes
        if n_rows >= window_rows or n_bytes >= window_bytes or position == len(shuffled):
            reads.append(Read(tuple(window), rng.permutation(_all_rows(window))))
            window, n_rows, n_bytes = [], 0, 0
    return reads


def has_heavy_windows(
    pieces: tuple[Piece, ...], window_rows: int = WINDOW_ROWS, window_bytes: float = WINDOW_BYTES
) -> bool:
    """Whether the bytes may end a window of some epoch. False: the order is the one that rows alone give."""
    empty = sum(p.n_bytes for p in pieces if not p.n_rows)
    most = max((p.n_bytes / p.n_rows for p in pieces if p.n_rows), default=0.0) * (window_rows - 1) + empty
    return min(most, sum(p.n_bytes for p in pieces)) >= window_bytes


def plan_pass(pieces: tuple[Piece, ...]) -> list[Read]:
    """Every row once, in the order of the files (validation)."""
    return [Read((piece,), _all_rows([piece])) for piece in pieces]


def take_rows(reads: list[Read], ranges: Ranges) -> list[Read]:
    """The part of `reads` that delivers the rows of `ranges`, in their order: what one worker reads."""
    return [part for start, stop in ranges for part in _take_range(reads, start, stop)]


def _take_range(reads: list[Read], start: int, stop: int) -> list[Read]:
    parts: list[Read] = []
    position = 0
    for read in reads:
        low, high = max(start - position, 0), min(stop - position, len(read.rows))
        position += len(read.rows)
        if low < high:
            rows = read.rows[low:high]
            used, index = np.unique(rows[:, 0], return_inverse=True)
            parts.append(Read(tuple(read.pieces[i] for i in used), np.stack([index, rows[:, 1]], 1).astype(np.int32)))
    return parts


def count_rows(ranges: Ranges) -> int:
    """Rows in all of them."""
    return sum(stop - start for start, stop in ranges)


def local_batch_size(batch_size: int, rank: int, world: int) -> int:
    """Images that this worker takes in a step; they differ by one where the workers do not divide the batch."""
    return batch_size * (rank + 1) // world - batch_size * rank // world


def deal(remaining: Ranges, batch_size: int, world: int) -> list[Ranges]:
    """What each worker uses of the rows that remain, in as many steps of `batch_size` rows as they give.

    Dealing again what is left after some steps (`leave`) to as many workers gives each what it had left: an epoch that
    goes on in its middle is the epoch that was never disturbed.
    """
    steps = count_rows(remaining) // batch_size
    ends = np.cumsum([steps * local_batch_size(batch_size, rank, world) for rank in range(world)])
    return [_cut(remaining, int(start), int(stop)) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def leave(shares: list[Ranges], batch_size: int, steps: int) -> Ranges:
    """The rows that remain of `shares` (see `deal`) after `steps` steps."""
    left: list[tuple[int, int]] = []
    for rank, share in enumerate(shares):
        done = steps * local_batch_size(batch_size, rank, len(shares))
        for start, stop in _cut(share, done, count_rows(share)):
            if left and left[-1][1] == start:
                left[-1] = (left[-1][0], stop)
            else:
                left.append((start, stop))
    return tuple(left)


def _cut(ranges: Ranges, start: int, stop: int) -> Ranges:
    """Rows `start` to `stop` of the rows of `ranges` one after the other."""
    parts, position = [], 0
    for first, last in ranges:
        low, high = max(start - position, 0), min(stop - position, last - first)
        if low < high:
            parts.append((first + low, first + high))
        position += last - first
    return tuple(parts)


def _all_rows(pieces: list[Piece]) -> np.ndarray:
    index = [np.stack([np.full(p.n_rows, i), np.arange(p.n_rows)], 1) for i, p in enumerate(pieces)]
    return np.concatenate(index).astype(np.int32)
