from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.training import order
from fcn_ray.training.order import Piece, Ranges, Read


def _piece(row_group: int, n_rows: int) -> Piece:
    return Piece("data/a.parquet", "a.parquet", row_group, 0, n_rows, n_rows)


def _rows(reads: list[Read]) -> list[tuple[int, int]]:
    """(row group, row) in the order of delivery."""
    return [(read.pieces[piece].row_group, int(row)) for read in reads for piece, row in read.rows]


def _numbers(ranges: Ranges) -> list[int]:
    return [row for start, stop in ranges for row in range(start, stop)]


pieces = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(
    lambda sizes: tuple(_piece(i, n) for i, n in enumerate(sizes))
)
workers = st.integers(1, 5)
batch_sizes = st.integers(5, 9)


@given(pieces, st.integers(0, 5), st.integers(1, 20))
def test_an_epoch_delivers_every_row_once_in_an_order_of_its_own(
    pieces: tuple[Piece, ...], epoch: int, window: int
) -> None:
    everything = sorted((p.row_group, row) for p in pieces for row in range(p.n_rows))
    rows = _rows(order.plan_epoch(pieces, 1, epoch, window))
    assert sorted(rows) == everything
    assert rows == _rows(order.plan_epoch(pieces, 1, epoch, window))


def test_a_window_ends_at_its_rows_or_at_its_bytes() -> None:
    pieces = tuple(Piece("data/a.parquet", "a.parquet", i, 0, 2, 10) for i in range(9))
    sizes = [[len(read.pieces) for read in order.plan_epoch(pieces, 1, 0, *limits)] for limits in ((6, 99), (99, 40))]
    assert sizes == [[3, 3, 3], [4, 4, 1]]
    heavy = Piece("data/a.parquet", "a.parquet", 9, 0, 1, 1000)
    for read in order.plan_epoch((*pieces, heavy), 1, 0, 99, 40):
        assert sum(piece.n_bytes for piece in read.pieces[:-1]) < 40, "more than the limit by one row group only"


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=9),
    st.integers(1, 9),
    st.integers(1, 60),
)
def test_light_windows_keep_the_order_that_rows_alone_give(groups: list[tuple[int, int]], rows: int, size: int) -> None:
    pieces = tuple(Piece("data/a.parquet", "a.parquet", i, 0, *group) for i, group in enumerate(groups))
    if not order.has_heavy_windows(pieces, rows, size):
        for epoch in range(5):
            bounded, alone = (order.plan_epoch(pieces, 1, epoch, rows, limit) for limit in (size, math.inf))
            assert _rows(bounded) == _rows(alone)


def test_usual_images_are_light_and_large_ones_heavy() -> None:
    usual = tuple(Piece("data/a.parquet", "a.parquet", i, 0, 100, 100 * 120_000) for i in range(300))
    assert not order.has_heavy_windows(usual)
    heavy = Piece("data/a.parquet", "a.parquet", 300, 0, 100, 100 * 5_000_000)
    assert order.has_heavy_windows((*usual, heavy))
    assert not order.has_heavy_windows(usual[:1] * 20), "a set of 240 MB"


def test_epochs_and_seeds_differ() -> None:
    pieces = tuple(_piece(i, 10) for i in range(10))
    orders = [_rows(order.plan_epoch(pieces, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(rows) for rows in orders}) == 4


@given(pieces, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=4), st.integers(1, 9))
def test_the_rows_of_ranges_come_in_their_order(
    pieces: tuple[Piece, ...], ranges: list[tuple[int, int]], window: int
) -> None:
    reads = order.plan_epoch(pieces, 7, 0, window)
    rows = _rows(reads)
    inside = tuple((start, start + length) for start, length in ranges if start + length <= len(rows))
    assert _rows(order.take_rows(reads, inside)) == [rows[number] for number in _numbers(inside)]


def test_a_share_reads_only_the_pieces_it_needs() -> None:
    read = Read(tuple(_piece(i, 1) for i in range(4)), np.array([[0, 0], [1, 0], [2, 0], [3, 0]], np.int32))
    (share,) = order.take_rows([read], ((1, 3),))
    assert [piece.row_group for piece in share.pieces] == [1, 2]


@given(st.integers(0, 9), batch_sizes, workers)
def test_every_worker_gets_its_part_of_every_step(steps: int, batch_size: int, world: int) -> None:
    remaining = ((0, steps * batch_size),)
    shares = order.deal(remaining, batch_size, world)
    assert [row for share in shares for row in _numbers(share)] == list(range(steps * batch_size))
    sizes = [order.local_batch_size(batch_size, rank, world) for rank in range(world)]
    assert [order.count_rows(share) for share in shares] == [steps * size for size in sizes]
    assert sum(sizes) == batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@given(st.integers(1, 9), st.integers(0, 9), batch_sizes, workers)
def test_an_epoch_that_goes_on_in_its_middle_is_the_one_that_was_not_disturbed(
    steps: int, done: int, batch_size: int, world: int
) -> None:
    shares = order.deal(((0, steps * batch_size),), batch_size, world)
    done = min(done, steps)
    again = order.deal(order.leave(shares, batch_size, done), batch_size, world)
    for rank, (before, after) in enumerate(zip(shares, again, strict=True)):
        used = done * order.local_batch_size(batch_size, rank, world)
        assert _numbers(after) == _numbers(before)[used:]


@given(st.integers(1, 12), batch_sizes, st.lists(st.tuples(workers, st.integers(1, 4)), max_size=6))
def test_groups_of_any_size_one_after_the_other_use_each_row_once(
    steps: int, batch_size: int, groups: list[tuple[int, int]]
) -> None:
    remaining: Ranges = ((0, steps * batch_size),)
    used: list[int] = []
    taken = 0
    for world, wanted in [*groups, (1, steps)]:
        shares = order.deal(remaining, batch_size, world)
        now = min(wanted, order.count_rows(remaining) // batch_size)
        for rank, share in enumerate(shares):
            used += _numbers(share)[: now * order.local_batch_size(batch_size, rank, world)]
        remaining = order.leave(shares, batch_size, now)
        taken += now
    assert taken == steps
    assert remaining == ()
    assert sorted(used) == list(range(steps * batch_size))
