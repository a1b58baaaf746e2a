"""BMP files written by hand, and changes to GIF and WebP files."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from tests.images import pngs


def bmp(
    rows: Sequence[bytes] | bytes,
    size: tuple[int, int],
    bits: int,
    *,
    palette: np.ndarray | None = None,
    compression: int = 0,
    top_down: bool = False,
    old: bool = False,
    masks: Sequence[int] = (),
) -> bytes:
    """`size` is (height, width); `rows` are packed rows from the top down, or what is compressed.

    `old` gives the header of OS/2; `masks` are those of red, green, blue (and alpha) for compression 3.
    """
    height, width = size
    colours = b"" if palette is None else b"".join(bytes(c[::-1]) + b"\0" * (not old) for c in palette.tolist())
    if isinstance(rows, bytes):
        data = rows
    else:
        padded = [row + bytes(-len(row) % 4) for row in rows]
        data = b"".join(padded if top_down else padded[::-1])
    if old:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        header_size = 124 if len(masks) == 4 else 40
        n_colours = 0 if palette is None else len(palette)
        signed = -height if top_down else height
        header = struct.pack(
            "<IiiHHIIiiII", header_size, width, signed, 1, bits, compression, len(data), 0, 0, n_colours, 0
        )
        header = (header + struct.pack(f"<{len(masks)}I", *masks)).ljust(header_size, b"\0")
    start = 14 + len(header) + len(colours)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + header + colours + data


def packed_rows(samples: np.ndarray, bits: int) -> list[bytes]:
    return [row.astype(np.uint8).tobytes() for row in pngs.packed(samples, bits)]


def run_lengths(indices: np.ndarray) -> bytes:
    """RLE8 of rows of indices, from the last row up."""
    rows = [b"".join(bytes([1, int(index)]) for index in row) + b"\0\0" for row in indices[::-1]]
    return b"".join(rows)[:-2] + b"\0\1"


def webp_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_canvas(height: int, width: int, flags: int = 0) -> bytes:
    """VP8X: the size of everything, and what else there is (2 animation, 8 EXIF, 16 alpha, 32 colour profile)."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides)
