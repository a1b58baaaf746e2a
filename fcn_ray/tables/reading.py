"""Reading a chunk: its images as encoded bytes, one row each, whatever state the files are in.

Every input, table or image file, becomes the same table: `chunk_id`, `chunk_row` (0..n-1), `chunk_rows` (n), `plan`,
`image_id`, `path`, `row`, `image` (large_binary), `source_error` (status code), `source_message`, carried columns. What
cannot be had is a row with a `source_error` and no image; a null image without one was null in its table. A store that
is out of reach is no fault of an image: `OutOfReachError` ends the job, which goes on later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from fcn_ray import storage
from fcn_ray.errors import FcnRayError, OutOfReachError, SchemaError, UnavailableError
from fcn_ray.tables import schema
from fcn_ray.tables.columns import Columns, carried_columns, find_image_column, is_text, plain_type, read_table_schema
from fcn_ray.tables.cursor import read_slice
from fcn_ray.tables.pickles import check_environment, read_footer
from fcn_ray.tables.places import Places
from fcn_ray.tables.sources import Piece, locate_sources

MAX_FILE_BYTES = 1_000_000_000
"""Larger image files are `too_big` unread: no picture within the pixel limit needs that much."""

_UNREADABLE, _CHANGED, _TOO_BIG = "unreadable", "changed", "too_big"

_Problem = tuple[str, str]
"""Status code and reason why an image could not be had."""


def read_rows(input_uri: str, pieces: Sequence[Piece], columns: Columns, allowed: tuple[str, ...] = ()) -> pa.Table:
    """The rows of a chunk's pieces, in order: exactly as many as the pieces say, whatever is bad.

    Paths and links lead below the input, or below an `allowed` prefix, or their rows are `unreadable`.
    """
    check_environment()
    locate, places = locate_sources(input_uri), Places.around(input_uri, allowed)
    tables = [
        read_parquet_rows(locate(piece.path), piece, columns, places)
        if piece.kind == "parquet"
        else read_image_file(locate(piece.path), piece, places)
        for piece in pieces
    ]
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
        entry, data = storage.fetch(places.check_file(uri), MAX_FILE_BYTES)
        problem = _changed(entry, piece) or (None if data is not None else _too_big(entry))
    except OutOfReachError:
        raise
    except FcnRayError as error:
        data, problem = None, (_UNREADABLE, str(error))
    image = pa.array([None if problem else data], pa.large_binary())
    return _table([piece.path], piece.path, [0], image, [problem])


def read_parquet_rows(uri: str, piece: Piece, columns: Columns, places: Places) -> pa.Table:
    """Rows `first_row` to `first_row + n_rows` of a table, from the row groups that hold them.

    A row group that cannot be read gives `unreadable` rows; the other rows are as they should be.
    """
    try:
        places.check_file(uri)
        table = _TablePart.find(uri, piece, columns, places).read()
    except OutOfReachError:
        raise
    except (FcnRayError, pa.ArrowException, OSError, ValueError) as error:
        table = _lost_rows(piece, piece.first_row, piece.n_rows, (_UNREADABLE, str(error)))
    problem = _version_problem(uri, piece)
    return _lost_rows(piece, piece.first_row, piece.n_rows, problem) if problem else table


@dataclass(frozen=True, slots=True)
class _TablePart:
    """The rows of a Parquet file that a piece stands for, and the columns that are wanted from it."""

    uri: str
    piece: Piece
    groups: list[int]
    """Rows of each row group."""
    image: str
    id: str | None
    carried: dict[str, pa.Field]
    places: Places

    @classmethod
    def find(cls, uri: str, piece: Piece, columns: Columns, places: Places) -> _TablePart:
        with storage.open_file(uri) as file:
            metadata = read_footer(file)
        arrow = read_table_schema(metadata)  # refuses what is not safe, before a row is read
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        image, carried = find_image_column(arrow, columns.image), carried_columns(arrow, columns)
        return cls(uri, piece, groups, image, columns.id, carried, places)

    def read(self) -> pa.Table:
        tables = []
        for group, start, count, row in self._slices():
            try:
                tables.append(self._normalise(self._read_group(group, start, count), row))
            except (pa.ArrowException, OSError, ValueError) as error:
                lost = _lost_rows(self.piece, row, count, (_UNREADABLE, f"row group {group}: {error}"))
                for field in self.carried.values():
                    lost = lost.append_column(field, pa.nulls(count, field.type))
                tables.append(lost)
        found = sum(table.num_rows for table in tables)
        if found != self.piece.n_rows:
            raise SchemaError(f"expected {self.piece.n_rows} rows from row {self.piece.first_row} on, found {found}")
        return pa.concat_tables(tables)

    def _slices(self) -> Iterator[tuple[int, int, int, int]]:
        """(row group, first row in it, number of rows, first row in the file) of each part of the piece."""
        begin, end, offset = self.piece.first_row, self.piece.first_row + self.piece.n_rows, 0
        for group, size in enumerate(self.groups):
            first, last = max(begin, offset), min(end, offset + size)
            if first < last:
                yield group, first - offset, last - first, first
            offset += size

    def _read_group(self, group: int, start: int, count: int) -> pa.Table:
        names = {self.image, *self.carried} | ({self.id} if self.id else set())
        return read_slice(self.uri, self.piece.version, group, list(names), start, count)

    def _normalise(self, table: pa.Table, first_row: int) -> pa.Table:
        rows = range(first_row, first_row + table.num_rows)
        ids = _default_ids(self.piece, rows)
        if self.id is not None:
            named = _text(_plain(table[self.id]).cast(pa.string())).to_pylist()
            ids = [default if name is None else name for name, default in zip(named, ids, strict=True)]
        image, problems = _read_cells(_plain(table[self.image]), self.uri.rpartition("/")[0] or ".", self.places)
        result = _table(ids, self.piece.path, rows, image, problems)
        for name, field in self.carried.items():
            result = result.append_column(field, _text(_plain(table[name])))
        return result


def _read_cells(column: pa.ChunkedArray, folder: str, places: Places) -> tuple[pa.ChunkedArray, list[_Problem | None]]:
    """Encoded images of a column of bytes, image structs or paths; paths are read, relative ones from `folder`."""
    problems: list[_Problem | None] = [None] * len(column)
    if schema.is_binary(column.type):
        return column.cast(pa.large_binary()), problems
    if is_text(column.type):
        paths, images = _text(column), pa.chunked_array([pa.nulls(len(column), pa.large_binary())])
    else:
        images = pc.struct_field(column, "bytes").cast(pa.large_binary())
        if images.null_count == 0 or column.type.get_field_index("path") < 0:
            return images, problems
        paths = _text(pc.struct_field(column, "path"))
    found = images.to_pylist()
    for index, path in enumerate(paths.to_pylist()):
        if found[index] is None and path:
            found[index], problems[index] = _read_image(path, folder, places)
    return pa.chunked_array([pa.array(found, pa.large_binary())]), problems


def _read_image(path: str, folder: str, places: Places) -> tuple[bytes | None, _Problem | None]:
    try:
        entry, data = storage.fetch(places.resolve(path, folder), MAX_FILE_BYTES)
    except UnavailableError:  # else a row: the place is what the table says
        raise
    except FcnRayError as error:
        return None, (_UNREADABLE, str(error))
    return data, None if data is not None else _too_big(entry)


def _too_big(entry: storage.Entry) -> _Problem:
    return _TOO_BIG, f"the file has {entry.size} bytes, more than {MAX_FILE_BYTES}"


def _version_problem(uri: str, piece: Piece) -> _Problem | None:
    """Why what was read is not what was planned. Asked after the reading, so that no change can slip in between."""
    try:
        return _changed(storage.stat(uri), piece)
    except OutOfReachError:
        raise
    except FcnRayError as error:
        return _UNREADABLE, str(error)


def _changed(entry: storage.Entry, piece: Piece) -> _Problem | None:
    if entry.version == piece.version:
        return None
    return _CHANGED, f"planned as version {piece.version}, found {entry.version}; the next run takes the new version"


def _lost_rows(piece: Piece, first_row: int, n_rows: int, problem: _Problem) -> pa.Table:
    rows, image = range(first_row, first_row + n_rows), pa.nulls(n_rows, pa.large_binary())
    return _table(_default_ids(piece, rows), piece.path, rows, image, [problem] * n_rows)


def _default_ids(piece: Piece, rows: Sequence[int]) -> list[str]:
    return [f"{piece.path}#{row}" for row in rows]


def _table(
    ids: Sequence[str],
    path: str,
    rows: Sequence[int],
    image: pa.Array | pa.ChunkedArray,
    problems: Sequence[_Problem | None],
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


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
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
