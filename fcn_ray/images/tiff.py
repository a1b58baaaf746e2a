"""The first directory of a TIFF: what it says about the size, the kind and the place of the pixels. Nothing is decoded.

TIFF is a family of formats. What Pillow would decode to other values than were stored is named here, and refused; each
kind that is not named has its case in tests/images/catalogue.py.
"""

from __future__ import annotations

import struct
from typing import Any

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, STRIP_ROWS, STRIP_BYTES, PLANES = 273, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
SAMPLE_FORMAT, SUBSAMPLING = 339, 530
_KIND = frozenset(
    (WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, PLANES, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT, SUBSAMPLING)
)
_PLACES = frozenset((STRIP_OFFSETS, STRIP_ROWS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES))

_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
"""Integer types of TIFF -> codes of struct."""

_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}
"""None, CCITT RLE, G3, G4, LZW, JPEG, Deflate, PackBits, Deflate (old), LZMA, Zstandard."""

_UNSIGNED, _FLOAT = 1, 3

Tags = dict[int, tuple[int, ...]]
"""Tag -> its values; the largest of them when a tag is there twice, since decoders differ on which one they believe."""


def read_tags(data: bytes, wanted: frozenset[int] = _KIND) -> Tags:
    """Those of the `wanted` tags that the first directory has.

    Raises struct.error when the file ends before them, ValueError when one is no integer. To pass over it would leave
    it to a decoder, which may not.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    offset = order + ("Q" if big else "I")
    count, entry = order + ("Q" if big else "H"), order + ("HHQ8s" if big else "HHI4s")
    (position,) = _unpack(offset, data, 8 if big else 4)
    (n_entries,) = _unpack(count, data, position)
    position += struct.calcsize(count)
    tags: Tags = {}
    for _ in range(n_entries):
        tag, kind, n_values, field = _unpack(entry, data, position)
        position += struct.calcsize(entry)
        if tag in wanted:
            if kind not in _TYPES:
                raise ValueError(f"tag {tag} has the type {kind}")
            values = f"{order}{n_values}{_TYPES[kind]}"
            if struct.calcsize(values) <= len(field):
                found = struct.unpack_from(values, field)
            else:
                found = _unpack(values, data, *struct.unpack(offset, field))
            tags[tag] = max(tags.get(tag, ()), found)
    return tags


def _unpack(format: str, data: bytes, position: int) -> tuple[Any, ...]:
    if position > len(data):  # struct would find some positions too large for an error of its own
        raise struct.error("beyond the end of the file")
    return struct.unpack_from(format, data, position)


def held_size(tags: Tags) -> tuple[int, int]:
    """Height and width in pixels of the largest thing that a decoder holds: the image, or one tile of it.

    A tile is decoded whole, however little of it is image. Raises ValueError without a size.
    """
    sizes = [(_first(tags, HEIGHT, 0), _first(tags, WIDTH, 0))]
    if min(sizes[0]) <= 0:
        raise ValueError("no size")
    sizes.append((_first(tags, TILE_HEIGHT, 0), _first(tags, TILE_WIDTH, 0)))
    return max(sizes, key=lambda size: size[0] * size[1])


def denied_kind(tags: Tags) -> str | None:
    """Why the pixels are of a kind that is not decoded here; None when they are of no such kind."""
    bits, formats = max(tags.get(BITS) or (1,)), set(tags.get(SAMPLE_FORMAT) or (_UNSIGNED,))
    compression, planes = _first(tags, COMPRESSION, 1), _first(tags, PLANES, 1)
    photometric = _first(tags, PHOTOMETRIC, 0)
    subsampling = tags.get(SUBSAMPLING) or (2, 2)
    if compression not in _COMPRESSIONS:
        return f"TIFF compression {compression} is not decoded here"
    if formats not in ({_UNSIGNED}, {_FLOAT}):
        return "signed or complex TIFF pixels have no agreed range; store 8 or 16 bits without sign"
    if photometric == 0 and bits > 8:
        return f"TIFF whose white is 0 is decoded up to 8 bits, found {bits}"
    if planes == 2 and compression == 1 and bits > 8:
        return f"TIFF in uncompressed planes is decoded up to 8 bits, found {bits}"
    if photometric == 6 and compression == 1 and subsampling != (1, 1):
        return f"uncompressed YCbCr TIFF with subsampling {subsampling} is not decoded here"
    return None


def lacks_parts(data: bytes) -> bool:
    """True when there are fewer strips or tiles than the image has: where there is none, Pillow leaves black.

    Raises struct.error and ValueError as `read_tags` and `held_size` do.
    """
    tags = read_tags(data, _KIND | _PLACES)
    held_size(tags)
    height, width = _first(tags, HEIGHT, 0), _first(tags, WIDTH, 0)
    part_height = _first(tags, TILE_HEIGHT, 0) or _first(tags, STRIP_ROWS, height) or height
    part_width = _first(tags, TILE_WIDTH, 0) or width
    layers = len(tags.get(BITS, (1,))) if _first(tags, PLANES, 1) == 2 else 1
    needed = -(-height // part_height) * -(-width // part_width) * layers
    return len(tags.get(TILE_OFFSETS) or tags.get(STRIP_OFFSETS, ())) < needed


def expected_bytes(data: bytes) -> int:
    """Bytes that the file has at least, by its own account. Raises struct.error when it ends before it says."""
    tags = read_tags(data, _KIND | _PLACES)
    ends = [0]
    for offsets, sizes in ((STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES)):
        ends += [offset + size for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)]
    return max(ends)


def _first(tags: Tags, tag: int, default: int) -> int:
    return (tags.get(tag) or (default,))[0]
