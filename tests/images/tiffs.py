"""TIFF files written by hand: any tags, either byte order, classic or big, strips or tiles."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.images import pngs

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION = 256, 257, 258, 259, 262, 266, 274
STRIP_OFFSETS, SAMPLES, STRIP_ROWS, STRIP_BYTES, PLANES, PREDICTOR, COLOUR_MAP = 273, 277, 278, 279, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, EXTRA, SAMPLE_FORMAT, SUBSAMPLING = 322, 323, 324, 325, 338, 339, 530
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8

_CODES = {1: "B", 2: "s", 3: "H", 4: "I", 7: "B", 11: "f", 12: "d", 16: "Q"}
Tags = Mapping[int, tuple[int, Sequence[float]]]
"""Tag -> type and values."""


def tiff(
    pages: Sequence[tuple[Tags, Sequence[bytes]]], order: str = "<", big: bool = False, loop: bool = False
) -> bytes:
    """A file of pages, the tags and the strips or tiles of each; with `loop` the last leads to the first."""
    offset, count, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    head = b"II" if order == "<" else b"MM"
    data = bytearray(head + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0))))
    link, first = 8 if big else 4, 0
    for tags, parts in pages:
        places = [_append(data, part) for part in parts]
        where = (TILE_OFFSETS, TILE_BYTES) if TILE_WIDTH in tags else (STRIP_OFFSETS, STRIP_BYTES)
        defaults = {where[0]: (4, places), where[1]: (4, [len(part) for part in parts])}
        entries = []
        for tag, (kind, values) in sorted({**defaults, **tags}.items()):
            raw = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
            field = raw if len(raw) <= struct.calcsize(offset) else struct.pack(order + offset, _append(data, raw))
            entries.append(
                struct.pack(order + entry, tag, kind, len(values)) + field.ljust(struct.calcsize(offset), b"\0")
            )
        directory = struct.pack(order + count, len(entries)) + b"".join(entries) + bytes(struct.calcsize(offset))
        place = _append(data, directory)
        first = first or place
        struct.pack_into(order + offset, data, link, place)
        link = len(data) - struct.calcsize(offset)
    if loop:
        struct.pack_into(order + offset, data, link, first)
    return bytes(data)


def _append(data: bytearray, part: bytes) -> int:
    data += bytes(-len(data) % 2)
    data += part
    return len(data) - len(part)


def tags(samples: np.ndarray, bits: int, photometric: int, compression: int = 1, **more: int | Sequence[int]) -> Tags:
    """Tags of an image of one strip; `more` are others by their name here, in lower case."""
    height, width = samples.shape[:2]
    channels = samples.reshape(height, width, -1).shape[2]
    named = {globals()[name.upper()]: (3, [value] if isinstance(value, int) else value) for name, value in more.items()}
    return {
        WIDTH: (4, [width]),
        HEIGHT: (4, [height]),
        BITS: (3, [bits] * channels),
        COMPRESSION: (3, [compression]),
        PHOTOMETRIC: (3, [photometric]),
        SAMPLES: (3, [channels]),
        **({} if "tile_width" in more else {STRIP_ROWS: (4, [height])}),
        **named,
    }


def stored(samples: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Rows of samples as they lie in a strip: floats and 16 bits in the file's order, less from the highest bit on."""
    if samples.dtype.kind == "f" or bits == 16:
        return samples.astype(
            samples.dtype.newbyteorder(order) if samples.dtype.kind == "f" else f"{order}u2"
        ).tobytes()
    return pngs.packed(samples, bits).astype(np.uint8).tobytes()


def strip(
    samples: np.ndarray, bits: int, photometric: int, compression: int = 1, order: str = "<", big: bool = False, **more
) -> bytes:
    """A file of one strip."""
    data = COMPRESSORS[compression](stored(samples, bits, order))
    return tiff([(tags(samples, bits, photometric, compression, **more), [data])], order, big)


def tiles(samples: np.ndarray, bits: int, photometric: int, compression: int = 1, side: int = 16, **more) -> bytes:
    """A file of square tiles, which reach over its edges."""
    height, width = samples.shape[:2]
    padding = [(0, -height % side), (0, -width % side)] + [(0, 0)] * (samples.ndim - 2)
    padded = np.pad(samples, padding, mode="edge")
    parts = [
        COMPRESSORS[compression](stored(padded[y : y + side, x : x + side], bits))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    return tiff([(tags(samples, bits, photometric, compression, tile_width=side, tile_height=side, **more), parts)])


def planes(samples: np.ndarray, bits: int, photometric: int, compression: int = 1, **more) -> bytes:
    """A file with a strip for each channel."""
    parts = [COMPRESSORS[compression](stored(samples[..., i], bits)) for i in range(samples.shape[2])]
    return tiff([(tags(samples, bits, photometric, compression, planes=2, **more), parts)])


def strips(samples: np.ndarray, bits: int, photometric: int, compression: int = 1, rows: int = 5) -> bytes:
    """A file of strips of a few rows."""
    parts = [COMPRESSORS[compression](stored(samples[y : y + rows], bits)) for y in range(0, len(samples), rows)]
    return tiff([(tags(samples, bits, photometric, compression, strip_rows=rows), parts)])


def packbits(data: bytes) -> bytes:
    """Every byte as it is, in runs of up to 128."""
    return b"".join(bytes([len(run) - 1]) + run for run in (data[i : i + 128] for i in range(0, len(data), 128)))


def lzw(data: bytes) -> bytes:
    """Codes of 9 bits only: the table is cleared before it would need more."""
    codes = [256]
    for number, byte in enumerate(data):
        codes += [256, byte] if number and number % 200 == 0 else [byte]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


COMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    1: bytes,
    5: lzw,
    8: zlib.compress,
    32773: packbits,
    32946: zlib.compress,
}
