"""Reading a chunk: its images as encoded bytes, one row each, whatever state the files are in.

Every input, table, tar or image file, becomes the same table: `chunk_id`, `chunk_row` (0..n-1), `chunk_rows` (n),
`plan`, `image_id`, `path`, `row`, `image` (large_binary), `source_error` (status code), `source_message`, carried
columns. What cannot be had is a row with a `source_error` and no image; a null image without one was null in its table.
A store that is out of reach is no fault of an image: `OutOfReachError` ends the job, which goes on later.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.errors import FcnRayError, OutOfReachError, SchemaError
from fcn_ray.tables import cells, schema
from fcn_ray.tables.cells import UNREADABLE, Problem, text
from fcn_ray.tables.columns import (
    Columns,
    carried_columns,
    check_columns,
    find_image_column,
    is_text,
    plain_type,
    read_table_schema,
)
from fcn_ray.tables.cursor import read_slice
from fcn_ray.tables.inputs import Input, folder_of, locate_sources
from fcn_ray.tables.pickles import check_environment, read_footer
from fcn_ray.tables.places import Places
from fcn_ray.tables.sources import Piece
from fcn_ray.tables.tars import BLOCK, Member, key_of, read_member, walk_images

_CHANGED = "changed"

_TAR_BUFFER = 64 << 10, 8 << 20
"""Fewest and most bytes that are read of a tar at a time: a chunk's images lie side by side in it."""


def read_rows(
    where: Input,
    pieces: Sequence[Piece],
    columns: Columns,
    allowed: tuple[str, ...] = (),
    all_versions: bool = False,
) -> pa.Table:
    """The rows of a chunk's pieces, in order: exactly as many as the pieces say, whatever is bad.

    Paths and links lead below the input, or below an `allowed` prefix, or their rows are `unreadable`. With
    `all_versions` there is `image_version` for the paths of image structs too, which results do not have.
    """
    check_environment()
    locate, places = locate_sources(where), Places.around(where, allowed)

    def read(piece: Piece) -> pa.Table:
        if piece.kind == "image":
            return read_image_file(locate(piece.path), piece, places)
        if piece.kind == "tar":
            return read_tar_rows(locate(piece.path), piece, columns, places)
        return read_parquet_rows(locate(piece.path), piece, columns, places, all_versions)

    only_images = all(piece.kind == "image" for piece in pieces)
    tables = cells.map_at_once(read, pieces) if only_images else [read(piece) for piece in pieces]
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def label_chunk(table: pa.Table, chunk_id: str, plan: int) -> pa.Table:
    """`table` with the columns that say which chunk of which plan it is, and which row: commit needs them."""
    n_rows = table.num_rows
    labels = {
        schema.CHUNK_ID: pa.array([chunk_id] * n_rows, pa.string()),
        schema.CHUNK_ROW: pa.array(range(n_rows), pa.int64()),
        schema.CHUNK_ROWS: pa.array([n_rows] * n_rows, pa.int64()),
        schema.PLAN: pa.array([plan] * n_rows, pa.int32()),
    }
    return pa.table(labels | {name: table[name] for name in table.column_names})


def read_image_file(uri: str, piece: Piece, places: Places) -> pa.Table:
    """The one row of an image file; `changed` when it is no longer the version that was planned."""
    try:
        entry, data = storage.fetch(places.check_file(uri), cells.MAX_FILE_BYTES)
        problem = _changed(entry, piece) or (None if data is not None else cells.too_big(entry.size))
    except OutOfReachError:
        raise
    except FcnRayError as error:
        data, problem = None, (UNREADABLE, str(error))
    image = pa.array([None if problem else data], pa.large_binary())
    return _table([piece.path], piece.path, [0], image, [problem])


def read_parquet_rows(uri: str, piece: Piece, columns: Columns, places: Places, all_versions: bool = False) -> pa.Table:
    """Rows `first_row` to `first_row + n_rows` of a table, from the row groups that hold them.

    A row group that cannot be read gives `unreadable` rows; the other rows are as they should be.
    """
    try:
        places.check_file(uri)
        table = _TablePart.find(uri, piece, columns, places, all_versions).read()
    except OutOfReachError:
        raise
    except (FcnRayError, pa.ArrowException, OSError, ValueError) as error:
        table = lost_rows(piece, piece.first_row, piece.n_rows, (UNREADABLE, str(error)))
    problem = _version_problem(uri, piece)
    return lost_rows(piece, piece.first_row, piece.n_rows, problem) if problem else table


def read_tar_rows(uri: str, piece: Piece, columns: Columns, places: Places) -> pa.Table:
    """Images `first_row` to `first_row + n_rows` of a tar, and WebDataset's key of each, if columns are carried.

    The key is the id too, if the id column is called `key`.
    """
    images: list[bytes | None] = []
    problems: list[Problem | None] = []
    names: list[str | None] = []
    try:
        for member, data in _read_members(places.check_file(uri), piece):
            images.append(data)
            problems.append(None if data is not None else cells.too_big(member.size))
            names.append(key_of(member.name))
        problem = UNREADABLE, f"expected {piece.n_rows} images from row {piece.first_row} on, found {len(images)}"
    except OutOfReachError:
        raise
    except (FcnRayError, OSError, ValueError) as error:
        problem = UNREADABLE, str(error)
    if changed := _version_problem(uri, piece):
        images, problems, names, problem = [], [], [], changed
    lost, rows = piece.n_rows - len(images), range(piece.first_row, piece.first_row + piece.n_rows)
    names += [None] * lost
    ids = _default_ids(piece, rows)
    if columns.id == schema.KEY:
        ids = [default if name is None else name for name, default in zip(names, ids, strict=True)]
    image = pa.array(images + [None] * lost, pa.large_binary())
    table = _table(ids, piece.path, rows, image, problems + [problem] * lost)
    carried = columns.carry == "plain" or (columns.carry != "none" and schema.KEY in columns.carry)
    return table.append_column(schema.KEY, pa.array(names, pa.string())) if carried else table


def _read_members(uri: str, piece: Piece) -> Iterator[tuple[Member, bytes | None]]:
    """Each image of a piece of a tar, with its content unless it is too big."""
    least, most = _TAR_BUFFER
    extent = piece.size + 2 * BLOCK * piece.n_rows  # with headers and padding
    with storage.open_file(uri) as stored:
        file = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stored), min(max(extent, least), most)))
        first = piece.first_row - piece.offset_row
        for member in islice(walk_images(file, piece.offset), first, first + piece.n_rows):
            yield member, None if member.size > cells.MAX_FILE_BYTES else read_member(file, member)


@dataclass(frozen=True, slots=True)
class _TablePart:
    """The rows of a Parquet file that a piece stands for, and the columns that are wanted from it."""

    uri: str
    piece: Piece
    metadata: pq.FileMetaData
    image: str
    id: str | None
    carried: dict[str, pa.Field]
    has_versions: bool
    """Its images are paths, and the versions of what they name go along: in all chunks of a table, or in none."""
    places: Places

    @classmethod
    def find(cls, uri: str, piece: Piece, columns: Columns, places: Places, all_versions: bool) -> _TablePart:
        with storage.open_file(uri) as file:
            metadata = read_footer(file)
        arrow = read_table_schema(metadata)  # refuses what is not safe, before a row is read
        check_columns(arrow, columns)  # again: it may not be the file that was planned
        image, carried = find_image_column(arrow, columns.image), carried_columns(arrow, columns)
        is_free = schema.IMAGE_VERSION not in {field.name for field in carried.values()}
        has_versions = columns.carry != "none" and is_free and is_text(plain_type(arrow.field(image).type))
        has_versions = has_versions or all_versions
        return cls(uri, piece, metadata, image, columns.id, carried, has_versions, places.beside(folder_of(uri)))

    def read(self) -> pa.Table:
        tables = []
        for group, start, count, row in self._slices():
            try:
                tables.append(self._normalise(self._read_group(group, start, count), row))
            except (pa.ArrowException, OSError, ValueError) as error:
                lost = lost_rows(self.piece, row, count, (UNREADABLE, f"row group {group}: {error}"))
                for field in self._fields():
                    lost = lost.append_column(field, pa.nulls(count, field.type))
                tables.append(lost)
        found = sum(table.num_rows for table in tables)
        if found != self.piece.n_rows:
            raise SchemaError(f"expected {self.piece.n_rows} rows from row {self.piece.first_row} on, found {found}")
        return pa.concat_tables(tables)

    def _fields(self) -> list[pa.Field]:
        """The columns beside those that every input has."""
        return [*self.carried.values(), *[pa.field(schema.IMAGE_VERSION, pa.string())] * self.has_versions]

    def _slices(self) -> Iterator[tuple[int, int, int, int]]:
        """(row group, first row in it, number of rows, first row in the file) of each part of the piece."""
        begin, end, offset = self.piece.first_row, self.piece.first_row + self.piece.n_rows, 0
        for group in range(self.metadata.num_row_groups):
            size = self.metadata.row_group(group).num_rows
            first, last = max(begin, offset), min(end, offset + size)
            if first < last:
                yield group, first - offset, last - first, first
            offset += size

    def _read_group(self, group: int, start: int, count: int) -> pa.Table:
        names = {self.image, *self.carried} | ({self.id} if self.id else set())
        return read_slice(self.uri, self.piece.version, self.metadata, group, list(names), start, count)

    def _normalise(self, table: pa.Table, first_row: int) -> pa.Table:
        rows = range(first_row, first_row + table.num_rows)
        ids = _default_ids(self.piece, rows)
        if self.id is not None:
            named = text(_plain(table[self.id]).cast(pa.string())).to_pylist()
            ids = [default if name is None else name for name, default in zip(named, ids, strict=True)]
        found = cells.read_cells(_plain(table[self.image]), folder_of(self.uri), self.places)
        result = _table(ids, self.piece.path, rows, found.images, found.problems)
        for name, field in self.carried.items():
            result = result.append_column(field, text(_plain(table[name])))
        if self.has_versions:
            result = result.append_column(schema.IMAGE_VERSION, pa.array(found.versions, pa.string()))
        return result


def _version_problem(uri: str, piece: Piece) -> Problem | None:
    """Why what was read is not what was planned. Asked after the reading, so that no change can slip in between."""
    try:
        return _changed(storage.stat(uri), piece)
    except OutOfReachError:
        raise
    except FcnRayError as error:
        return UNREADABLE, str(error)


def _changed(entry: storage.Entry, piece: Piece) -> Problem | None:
    if entry.version == piece.version:
        return None
    return _CHANGED, f"planned as version {piece.version}, found {entry.version}; the next run takes the new version"


def lost_rows(piece: Piece, first_row: int, n_rows: int, problem: Problem) -> pa.Table:
    """Rows of which nothing could be had, as what is read would have been; `problem` is a status code and a reason."""
    rows, image = range(first_row, first_row + n_rows), pa.nulls(n_rows, pa.large_binary())
    return _table(_default_ids(piece, rows), piece.path, rows, image, [problem] * n_rows)


def _default_ids(piece: Piece, rows: Sequence[int]) -> list[str]:
    return [piece.path if piece.kind == "image" else f"{piece.path}#{row}" for row in rows]


def _table(
    ids: Sequence[str],
    path: str,
    rows: Sequence[int],
    image: pa.Array | pa.ChunkedArray,
    problems: Sequence[Problem | None],
) -> pa.Table:
    return pa.table(
        {
            schema.IMAGE_ID: pa.array(ids, pa.string()),
            schema.PATH: pa.array([path] * len(ids), pa.string()),
            schema.ROW: pa.array(rows, pa.int64()),
            schema.IMAGE: image,
            schema.SOURCE_ERROR: pa.array([problem and problem[0] for problem in problems], pa.string()),
            schema.SOURCE_MESSAGE: pa.array([problem and problem[1] for problem in problems], pa.string()),
        }
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    while isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column.cast(plain_type(column.type))
