from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.config import ChunkConfig
from fcn_ray.tables.chunks import chunk_id, cut_chunks, cut_table
from fcn_ray.tables.sources import Piece, Source

TABLE = Source("t.parquet", "parquet", 10, "1")


def _sizes(row_groups: list[int], rows: int) -> list[int]:
    return [piece.n_rows for (piece,) in cut_table(TABLE, row_groups, rows)]


@pytest.mark.parametrize(
    ("row_groups", "rows", "sizes"),
    [
        ([100, 100, 50], 64, [64, 36, 64, 36, 50]),  # the end of each row group
        ([64, 64], 64, [64, 64]),
        ([70, 70], 64, [64, 64, 12]),  # 6 rows would be a tiny chunk: across the border
        ([10] * 10, 64, [60, 40]),  # several whole row groups
        ([1], 64, [1]),
        ([3, 1000], 500, [500, 500, 3]),
        ([0, 5, 0], 4, [4, 1]),
        ([2, 2], 1, [1, 1, 1, 1]),
        ([], 64, []),
        ([0], 64, []),
    ],
)
def test_tables_are_cut_along_row_groups(row_groups: list[int], rows: int, sizes: list[int]) -> None:
    assert _sizes(row_groups, rows) == sizes


@given(st.lists(st.integers(0, 50), max_size=10), st.integers(1, 40))
def test_every_row_of_a_table_is_in_one_chunk(row_groups: list[int], rows: int) -> None:
    pieces = [piece for (piece,) in cut_table(TABLE, row_groups, rows)]
    ends = list(accumulate(piece.n_rows for piece in pieces))
    assert [piece.first_row for piece in pieces] == [0, *ends][: len(pieces)]
    assert sum(piece.n_rows for piece in pieces) == sum(row_groups)
    assert all(rows / 2 <= piece.n_rows <= rows for piece in pieces[:-1])
    assert all(1 <= piece.n_rows <= rows for piece in pieces)
    borders = list(accumulate(row_groups))
    assert all(piece.n_rows == rows for piece, end in zip(pieces, ends, strict=True) if end not in borders)


def _image(name: str, size: int = 1) -> Source:
    return Source(name, "image", size, "1")


def _cut(sources: list[Source], rows: int, limit: int) -> list[list[str]]:
    units = cut_chunks(sources, ChunkConfig(rows=rows, bytes=limit), lambda source: [5] if source is TABLE else [])
    return [[piece.path for piece in chunk] for unit in units for chunk in unit]


def test_image_files_fill_a_chunk_up_to_a_count_or_a_size() -> None:
    assert _cut([_image(name) for name in "abcde"], 2, 100) == [["a", "b"], ["c", "d"], ["e"]]
    sizes = {"a": 60, "b": 40, "c": 1, "d": 500, "e": 1}
    assert _cut([_image(*item) for item in sizes.items()], 9, 100) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_a_table_ends_a_chunk_of_files() -> None:
    sources = [_image("a"), TABLE, _image("x"), Source("y.parquet", "parquet", 1, "1"), _image("z")]
    assert _cut(sources, 4, 100) == [["a"], ["t.parquet"], ["t.parquet"], ["x"], ["z"]]


def test_ids_are_the_same_for_ever() -> None:
    chunk = [Piece("a.png", "10-1", "image", 0, 1, 10), Piece("ü.png", "11-2", "image", 0, 1, 11)]
    assert chunk_id(chunk) == "3de2307c91174fb8d86f62af7886b601"


@pytest.mark.parametrize(
    "other",
    [
        Piece("b", "1", "parquet", 0, 5, 10),
        Piece("a", "2", "parquet", 0, 5, 10),
        Piece("a", "1", "image", 0, 5, 10),
        Piece("a", "1", "parquet", 1, 5, 10),
        Piece("a", "1", "parquet", 0, 6, 10),
    ],
)
def test_ids_tell_inputs_apart(other: Piece) -> None:
    assert chunk_id([other]) != chunk_id([Piece("a", "1", "parquet", 0, 5, 10)])
