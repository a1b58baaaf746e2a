from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.config import ChunkConfig
from fcn_ray.tables.chunks import chunk_id, cut_chunks, cut_table
from fcn_ray.tables.contents import RowGroup
from fcn_ray.tables.sources import Piece, Source

TABLE = Source("t.parquet", "parquet", 10, "1")


def _groups(rows: list[int], mean: int = 0) -> list[RowGroup]:
    return [RowGroup(count, count * mean) for count in rows]


def _sizes(row_groups: list[int], rows: int) -> list[int]:
    return [piece.n_rows for (piece,) in cut_table(TABLE, _groups(row_groups), ChunkConfig(rows=rows))]


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
    pieces = [piece for (piece,) in cut_table(TABLE, _groups(row_groups), ChunkConfig(rows=rows))]
    ends = list(accumulate(piece.n_rows for piece in pieces))
    assert [piece.first_row for piece in pieces] == [0, *ends][: len(pieces)]
    assert sum(piece.n_rows for piece in pieces) == sum(row_groups)
    assert all(rows / 2 <= piece.n_rows <= rows for piece in pieces[:-1])
    assert all(1 <= piece.n_rows <= rows for piece in pieces)
    borders = list(accumulate(row_groups))
    assert all(piece.n_rows == rows for piece, end in zip(pieces, ends, strict=True) if end not in borders)


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        ([(100, 1000)], [10] * 10),  # 10 bytes a row
        ([(10, 90), (10, 90)], [10, 10]),  # an 11th row would fit: a border comes before it
        ([(3, 30), (10, 100)], [10, 3]),
        ([(5, 50), (10, 100)], [5, 10]),
        ([(4, 1000)], [1, 1, 1, 1]),  # larger than a chunk may be: each alone
        ([(4, 0), (20, 0)], [16, 8]),  # nothing is known of their bytes
        ([(1, 60), (1, 60), (1, 40), (1, 1)], [1, 2, 1]),  # a tar
        ([(2, 7), (9, 9 << 60)], [2, *[1] * 9]),
        ([(1, 101), (3, 0)], [1, 3]),
    ],
)
def test_tables_are_cut_by_bytes_too(groups: list[tuple[int, int]], sizes: list[int]) -> None:
    chunks = cut_table(TABLE, [RowGroup(*group) for group in groups], ChunkConfig(rows=16, bytes=100))
    assert [piece.n_rows for (piece,) in chunks] == sizes


_GROUP = st.tuples(st.integers(0, 50), st.integers(0, 30))


@given(st.lists(_GROUP, max_size=10), st.integers(1, 40), st.integers(1, 300))
def test_no_chunk_of_a_table_is_too_large(groups: list[tuple[int, int]], rows: int, limit: int) -> None:
    """Each row has the bytes of its row group, given here by row; but for its last, no chunk could be twice as long."""
    table = [RowGroup(count, count * size) for count, size in groups]
    counts = [piece.n_rows for (piece,) in cut_table(TABLE, table, ChunkConfig(rows=rows, bytes=limit))]
    sizes = [size for count, size in groups for _ in range(count)]
    ends = [0, *accumulate(counts)]
    assert ends[-1] == len(sizes)
    for first, end in pairwise(ends):
        assert end - first == 1 or (end - first <= rows and sum(sizes[first:end]) <= limit)
        twice = sizes[first : first + 2 * (end - first) + 1]
        assert end == len(sizes) or len(twice) > rows or sum(twice) > limit


def _old_rule(groups: list[int], rows: int) -> list[int]:
    """How tables were cut before bytes counted."""
    borders, first, sizes = list(accumulate(groups)), 0, []
    while borders and first < borders[-1]:
        end = min(first + rows, borders[-1])
        fitting = [border for border in borders if first + (rows + 1) // 2 <= border <= end]
        end = fitting[-1] if fitting else end
        sizes.append(end - first)
        first = end
    return sizes


@given(st.lists(st.integers(0, 50), max_size=10), st.integers(1, 40), st.integers(0, 10))
def test_small_images_are_cut_as_ever(groups: list[int], rows: int, mean: int) -> None:
    chunks = cut_table(TABLE, _groups(groups, mean), ChunkConfig(rows=rows, bytes=1000))
    assert [piece.n_rows for (piece,) in chunks] == _old_rule(groups, rows)


def test_chunks_of_a_tar_say_where_their_images_are() -> None:
    source = Source("t.tar", "tar", 9999, "1")
    groups = [RowGroup(1, size, offset) for size, offset in [(60, 0), (60, 1024), (30, 2048), (20, 3072)]]
    pieces = [piece for (piece,) in cut_table(source, groups, ChunkConfig(rows=9, bytes=100))]
    found = [(piece.first_row, piece.n_rows, piece.size, piece.offset, piece.offset_row) for piece in pieces]
    assert found == [
        (0, 1, 60, 0, 0),
        (1, 2, 90, 1024, 1),
        (3, 1, 20, 3072, 3),
    ]


def _image(name: str, size: int = 1) -> Source:
    return Source(name, "image", size, "1")


def _cut(sources: list[Source], rows: int, limit: int) -> list[list[str]]:
    units = cut_chunks(
        sources, ChunkConfig(rows=rows, bytes=limit), lambda source: _groups([5]) if source is TABLE else []
    )
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
