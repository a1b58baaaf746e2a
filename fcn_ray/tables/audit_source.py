"""The audit against the source: is every mask as large as its image, upright, where that is still what was labelled.

This part alone reads as the job does: what may be opened, and which bytes are a row's image, is the same question again
(DECISIONS 127). How large an image is Pillow says, without the rules of the job's decoder.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
from PIL import ExifTags, Image, UnidentifiedImageError

from fcn_ray.tables import schema
from fcn_ray.tables.audit_plans import PlanRow
from fcn_ray.tables.audit_rows import Labelled
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.places import spell_places
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.sources import Kind, Piece

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_TOLD_LATE = ("PNG", "TIFF")
"""Of these Pillow knows for sure only after decoding which way up they are."""
_ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

Problem = tuple[str, str]
"""Kind of finding, and what was found and expected."""


class Sources:
    """The images that a run was made of, as they are now.

    `compared` counts the ok rows whose image is what was labelled, `others` those whose image changed since, is gone,
    cannot be read, or does not tell (rows have no version of the file that their table names).
    """

    def __init__(self, run: Mapping[str, Any]) -> None:
        """`run` is what run.json says. Raises ConfigError, KeyError, TypeError... when it says nothing of an input."""
        identity = run["identity"]
        column, allowed = identity.get("columns", {}).get("image"), identity.get("allow_paths", [])
        if not all(isinstance(text, str) for text in [run["input"], column or "", *allowed]):
            raise TypeError("its input, image column or allow_paths are no text")
        self.compared = self.others = 0
        self._columns, self._allowed = Columns(image=column, carry=()), spell_places(tuple(allowed))
        self._where = understand_input(run["input"])

    def check(self, rows: Sequence[PlanRow], labelled: Sequence[Labelled | None]) -> Iterator[Problem]:
        """What is wrong with the rows of a chunk; `labelled` has one entry for each row, None for a bad one.

        Raises OutOfReachError: a store that does not answer, or not us, tells nothing of an image.
        """
        table = self._read(rows) if any(labelled) else None
        if table is None or len(table) != len(labelled):
            self.others += len(labelled) - labelled.count(None)
            return
        for index, (row, error, version) in enumerate(zip(labelled, *_told(table), strict=True)):
            if row is None:
                continue
            if error is not None or version not in (None, row.version):
                self.others += 1
                continue
            self.compared += 1
            name = f"{table[schema.PATH][index].as_py()!r} row {table[schema.ROW][index].as_py()}"
            size = measure(table[schema.IMAGE][index].as_py())
            if isinstance(size, str):
                yield "source", f"row {index}: is ok, but its image {name} cannot be opened: {size}"
            elif size != (row.height, row.width):
                yield "source", f"row {index}: its image {name} is {size}, the row says {row[:2]} (height, width)"

    def _read(self, rows: Sequence[PlanRow]) -> pa.Table:
        """The rows of a chunk as they are now."""
        pieces = [_as_piece(row) for row in rows]
        return read_rows(self._where, pieces, self._columns, self._allowed, all_versions=True)


def _as_piece(row: PlanRow) -> Piece:
    """The row of a plan as the reader knows it; how many bytes its images have only says how it reads a tar."""
    kind = cast(Kind, row.kind)
    return Piece(row.path, row.version, kind, row.first_row, row.n_rows, 1 << 20, row.offset, row.offset_row)


def _told(table: pa.Table) -> tuple[list[str | None], list[str | None]]:
    """Why each image could not be had, and the version of the file that a table names for it."""
    has_versions = schema.IMAGE_VERSION in table.column_names
    versions = table[schema.IMAGE_VERSION].to_pylist() if has_versions else [None] * len(table)
    return table[schema.SOURCE_ERROR].to_pylist(), versions


def measure(image: bytes | None) -> tuple[int, int] | str:
    """Height and width in pixels of an encoded image when it is upright, or why it cannot be opened."""
    if image is None:
        return "there is none"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
                if opened.format in _TOLD_LATE:
                    opened.load()
                turned = _orientation(opened) in _ON_THEIR_SIDE  # a TIFF has been turned, and has none any more
                height, width = opened.height, opened.width
                return (width, height) if turned else (height, width)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its own words name a place in memory
        return "it is no image"
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error... on damaged images
        return f"{type(error).__name__}: {error}"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damage to EXIF is none to the picture
        return 1
