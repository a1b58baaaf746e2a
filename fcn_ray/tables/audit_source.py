"""The audit against the source: is every mask as large as its image, upright, where that is still what was labelled.

The input is read by code of its own: pyarrow for tables, the standard library for tars, Pillow for sizes. Shared with
the writer are two guards, which say what may be opened at all (places.py, pickles.py).
"""

from __future__ import annotations

import io
import re
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import ExifTags, Image

from fcn_ray import storage
from fcn_ray.errors import OutOfReachError, SchemaError, StorageError
from fcn_ray.tables import schema
from fcn_ray.tables.audit_plans import PlanRow
from fcn_ray.tables.audit_rows import Labelled
from fcn_ray.tables.pickles import open_parquet
from fcn_ray.tables.places import Places

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Members of a tar with these are its rows."""

_ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

_MAX_BYTES = 1_000_000_000
"""Larger files are never ok, so their size is never asked for."""
_BATCH_ROWS = 16
_BUFFER = 1 << 20
"""Bytes read at a time from a column: not its whole row group at once."""
_THREADS = 8

Problem = tuple[str, str]
"""Kind of finding, and what was found and expected."""


class _File(NamedTuple):
    """An image in a file of its own, and the version that was labelled."""

    uri: str
    version: str


_Image = bytes | _File | str | None
"""An encoded image, the file that it is in, why what was labelled cannot be opened any more, or None: it is gone, is
another one now, or it cannot be known."""


class Sources:
    """The images that a run was made of, as they are now.

    `compared` counts the ok rows whose image is what was labelled, `others` those whose image changed since, is gone,
    or does not tell (its table's rows have no version of the files that they name).
    """

    def __init__(self, where: str, image_column: str | None, allowed: Sequence[str]) -> None:
        """`where` is the input of the run, as its run.json has it; so are the column and the allowed prefixes."""
        self.compared = self.others = 0
        self._column = image_column
        self._is_list = where.startswith("@")
        self._folder, self._only = _understand(where)
        named = [] if self._only is None else [self._only]  # it may be a link: where it leads is what is meant
        self._places = Places(tuple(storage.absolute(place) for place in [*named, *allowed])).beside(self._folder)
        self._stream: _Stream | None = None

    def check(self, rows: Sequence[PlanRow], labelled: Sequence[Labelled | None]) -> Iterator[Problem]:
        """What is wrong with the rows of a chunk; `labelled` has one entry for each row, None for a bad one."""
        images: list[_Image] = []
        for piece in rows:
            images += self._find(piece, labelled[len(images) : len(images) + piece.n_rows])
        with ThreadPoolExecutor(_THREADS) as pool:  # in a store each is a request, which mostly waits
            images = list(pool.map(_load, images))
        names = [f"{piece.path!r} row {piece.first_row + index}" for piece in rows for index in range(piece.n_rows)]
        for index, (row, image, name) in enumerate(zip(labelled, images, names, strict=True)):
            if row is None:
                continue
            size = measure(image) if isinstance(image, bytes) else image
            self.compared += size is not None
            self.others += size is None
            if isinstance(size, str):
                yield "source", f"row {index}: is ok, but its image {name} cannot be opened: {size}"
            elif size not in (None, (row.height, row.width)):
                yield "source", f"row {index}: its image {name} is {size}, the row says {row[:2]} (height, width)"

    def _find(self, piece: PlanRow, labelled: Sequence[Labelled | None]) -> list[_Image]:
        """The images of a piece of the plan, of those rows that have a mask."""
        nothing: list[_Image] = [None] * piece.n_rows
        if not any(labelled):
            return nothing
        try:
            uri = self._places.check_file(self._locate(piece.path))
            if piece.kind == "image":
                return [_File(uri, piece.version)]
            if storage.stat(uri).version != piece.version:
                return nothing
            images = self._read(uri, piece, labelled)
            return images if storage.stat(uri).version == piece.version else nothing  # it may have changed meanwhile
        except OutOfReachError:
            raise
        except StorageError:
            return nothing

    def _locate(self, path: str) -> str:
        if self._only is not None:
            return self._only
        named = self._is_list and ("://" in path or path.startswith("/"))
        return path if named else storage.join(self._folder, path)

    def _read(self, uri: str, piece: PlanRow, labelled: Sequence[Labelled | None]) -> list[_Image]:
        """The images of rows of a table or tar. It stays open, for the next piece is mostly what follows in it."""
        stream, self._stream = self._stream, None
        try:
            if stream is None or (stream.uri, stream.version) != (uri, piece.version) or stream.row > piece.first_row:
                stream = _open_stream(uri, piece, self._column)
            cells = stream.take(piece.first_row, piece.n_rows)
        except (SchemaError, pa.ArrowException, tarfile.TarError, OSError, ValueError) as error:
            return [str(error)] * piece.n_rows
        self._stream = stream
        folder = uri.rpartition("/")[0] or "/"
        places = self._places.beside(folder)
        return [
            _named(cell, row.version, places, folder) if isinstance(cell, str) and row is not None else cell
            for cell, row in zip(cells, labelled, strict=True)
        ]


class _Stream:
    """The cells of a table or tar in order: encoded images, or the paths of image files."""

    def __init__(self, uri: str, version: str, row: int, cells: Iterator[bytes | str | None]) -> None:
        self.uri, self.version, self.row, self._cells = uri, version, row, cells

    def take(self, first: int, count: int) -> list[bytes | str | None]:
        """Cells `first` to `first + count`; those before are passed over. Raises ValueError when there are fewer."""
        found = list(islice(self._cells, first - self.row, first - self.row + count))
        self.row = first + count
        if len(found) != count:
            raise ValueError(f"expected {count} images from row {first} on, found {len(found)}")
        return found


def measure(image: bytes) -> tuple[int, int] | str:
    """Height and width in pixels of an encoded image when it is upright, or why it cannot be opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
                width, height = opened.size
                turned = opened.format != "TIFF" and _orientation(opened) in _ON_THEIR_SIDE  # Pillow turns TIFFs
                return (width, height) if turned else (height, width)
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error... on damaged images
        return f"{type(error).__name__}: {error}"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damage to EXIF is none to the picture
        return 1


def _understand(where: str) -> tuple[str, str | None]:
    """The folder that paths of rows are relative to, and the file, if the input is only one."""
    if where.startswith("@"):
        return where[1:].rpartition("/")[0] or "/", None
    if storage.is_file(where):
        return where.rpartition("/")[0] or "/", where
    magic = re.search(r"[*?\[]", where)
    if magic and not storage.exists(where):
        return where[: magic.start()].rpartition("/")[0] or "/", None
    return where, None


def _load(image: _Image) -> bytes | str | None:
    """The content of a file, if it is still the version that was labelled."""
    if not isinstance(image, _File):
        return image
    try:
        entry, data = storage.fetch(image.uri, _MAX_BYTES)
    except OutOfReachError:
        raise
    except StorageError:
        return None
    return data if entry.version == image.version else None


def _named(path: str, version: str | None, places: Places, folder: str) -> _File | None:
    """The file that a table names, if it is known which version of it was labelled, and it may still be read."""
    try:
        return None if version is None else _File(places.resolve(path, folder), version)
    except StorageError:
        return None


def _open_stream(uri: str, piece: PlanRow, column: str | None) -> _Stream:
    """The cells from a row on that is not behind the first of the piece."""
    if piece.kind == "tar":
        return _Stream(uri, piece.version, piece.offset_row, _read_tar(uri, piece.offset))
    with storage.open_file(uri) as file:
        metadata = open_parquet(file).metadata
    group = first = 0
    while group + 1 < metadata.num_row_groups and first + metadata.row_group(group).num_rows <= piece.first_row:
        first += metadata.row_group(group).num_rows
        group += 1
    return _Stream(uri, piece.version, first, _read_table(uri, group, column))


def _read_table(uri: str, group: int, column: str | None) -> Iterator[bytes | str | None]:
    with storage.open_file(uri) as file:
        parquet = open_parquet(file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True)
        name = column or _guess_column(parquet.schema_arrow)
        groups = range(group, parquet.num_row_groups)
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[name], use_threads=False):
            for cell in batch.column(0).to_pylist():
                yield _image_of(cell)


def _image_of(cell: Any) -> bytes | str | None:
    """What a cell holds: bytes or a path, or a struct with the one, or else the other."""
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell["bytes"] is not None else cell.get("path")
    return cell if cell or isinstance(cell, bytes) else None


def _guess_column(arrow: pa.Schema) -> str:
    """The column of images where none was named: README, "Input"."""
    kinds = {field.name: _stripped(field.type) for field in arrow}
    holding = [name for name, kind in kinds.items() if _holds_bytes(kind) and name != schema.MASK]
    texts = [name for name in ("image", "path", "image_path") if _is_text(kinds.get(name))]
    return "image" if "image" in holding + texts else (holding + texts)[0]


def _stripped(kind: pa.DataType) -> pa.DataType:
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        inner = {field.name: field.type for field in kind}
        return inner.keys() <= {"bytes", "path"} and _holds_bytes(inner.get("bytes", pa.null()))
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_text(kind: pa.DataType | None) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _read_tar(uri: str, offset: int) -> Iterator[bytes]:
    with storage.open_file(uri) as file:
        file.seek(offset)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                if member.isreg() and not member.issparse() and _is_row(member.name):
                    content = archive.extractfile(member)
                    yield content.read(_MAX_BYTES) if content is not None else b""


def _is_row(name: str) -> bool:
    *folders, last = re.sub(r"^(\./)+", "", name).split("/")
    hidden = last.startswith(".") or any(folder.startswith((".", "_")) for folder in folders)
    return last.lower().endswith(_SUFFIXES) and not hidden
