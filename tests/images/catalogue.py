"""The catalogue of bad and odd pictures: every way known to us in which an image, a file or a table is not as it should
be, with what must become of it. Rows 1 to 29 are single images, 31 to 42 folders and tables."""

from __future__ import annotations

import functools

from tests.images import bombs, broken, denied, folders, frames, sound, special, strangers, tables, turned
from tests.images.case import Case
from tests.images.folders import Folder

ROWS = {
    1: "zero bytes, null",
    2: "HTML, JSON, random bytes, SVG",
    3: "EPS, which other decoders hand to Ghostscript",
    4: "JPEG that was cut",
    5: "PNG and others that were cut",
    6: "PNG without IEND",
    7: "wrong checksums, or data that cannot be unpacked",
    8: "headers that are wrong, no pixels at all",
    9: "JPEG with changed bytes, which nothing tells",
    10: "names that are not what is in the file",
    11: "CMYK and YCCK JPEG",
    12: "CMYK TIFF",
    13: "16-bit grey",
    14: "16-bit colours",
    15: "float TIFF, NaN",
    16: "one bit, palettes, alpha, other ways to store RGB",
    17: "EXIF orientation",
    18: "animated GIF and PNG",
    19: "animated WebP",
    20: "TIFF of several pages",
    21: "progressive, arithmetic-coded and lossless JPEG",
    22: "12-bit JPEG, and other kinds that are not decoded",
    23: "bad colour profiles",
    24: "AVIF, HEIC, JPEG 2000",
    25: "headers that promise too much",
    26: "whole images that are too much",
    27: "text and profiles that unpack to 64 MB",
    28: "one pixel, one row, one column",
    29: "formats that others decode",
    30: "decoders that die, hang, or take all memory",
    31: "one bad file in a folder",
    32: "files that a listing passes over",
    33: "tables of zero bytes",
    34: "tables with a broken footer",
    35: "tables that differ in their columns",
    36: "tables without images",
    37: "one wrong bit in a table",
    38: "large columns",
    39: "absurd sizes in a table",
    40: "names",
    41: "ids that are there twice, or not at all",
    42: "files that change while they are read",
}
"""Row -> what it is about. Row 30 is no input: tests/images/test_catalogue.py decodes all others in a process with
little memory."""


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every image of the catalogue."""
    rooms = (strangers, broken, bombs, sound, special, turned, frames, denied)
    return tuple(case for room in rooms for case in room.cases())


@functools.cache
def inputs() -> tuple[Folder, ...]:
    """Every folder of the catalogue."""
    return (*folders.folders(), *tables.folders())
