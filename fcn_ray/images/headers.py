"""What the header of an image says before a decoder sees it: its size, and whether its kind is decoded here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fcn_ray.images import tiff

_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA}
"""Kinds of JPEG that are decoded: baseline, extended, progressive, lossless, and the first two arithmetic-coded."""

_JPEG_OTHER_FRAMES = {0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}
_JPEG_SCAN = 0xDA
_JPEG_BARE = {0x00, 0x01, *range(0xD0, 0xD9)}
"""Markers that no length follows, and what is none."""


@dataclass(frozen=True, slots=True)
class Header:
    """Height and width in pixels of what a decoder must hold, and why this kind of image is not decoded here."""

    height: int
    width: int
    denied: str | None = None


def read_header(data: bytes, name: str) -> Header | None:
    """Header of the accepted format `name`; None when it cannot be read, and the image is not to be decoded."""
    try:
        return _READERS[name](data)
    except (struct.error, ValueError, IndexError):
        return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of what follows its length, for each segment up to the first scan.

    Raises struct.error or IndexError when the file ends before it.
    """
    position, marker = 2, 0
    while marker != _JPEG_SCAN:
        while data[position] != 0xFF:  # decoders pass over strays
            position += 1
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker in _JPEG_BARE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        yield marker, position + 2
        position += max(length, 2)


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    return Header(height, width)


def _gif(data: bytes) -> Header:
    width, height = struct.unpack_from("<HH", data, 6)
    return Header(height, width)


def _bmp(data: bytes) -> Header:
    old = struct.unpack_from("<I", data, 14) == (12,)
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return Header(abs(height), abs(width))


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return Header(height, width)


def _jpeg(data: bytes) -> Header:
    for marker, position in jpeg_segments(data):
        if marker in _JPEG_FRAMES | _JPEG_OTHER_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position)
            denied = None
            if bits != 8:
                denied = f"JPEG of {bits} bits per channel is not decoded here"
            elif marker in _JPEG_OTHER_FRAMES or channels not in (1, 3, 4):
                denied = f"JPEG of kind SOF{marker - 0xC0} with {channels} channels is not decoded here"
            return Header(height, width, denied)
    raise ValueError("no frame")


def _tiff(data: bytes) -> Header:
    tags = tiff.read_tags(data)
    return Header(*tiff.held_size(tags), tiff.denied_kind(tags))


_READERS = {"PNG": _png, "GIF": _gif, "BMP": _bmp, "WEBP": _webp, "JPEG": _jpeg, "TIFF": _tiff}
