"""Row 17 of the catalogue: images that were stored as the camera was held, and orientations that are none."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.images import jpegs, pngs, tiffs
from tests.images.case import LOSSY, Case, blocks, grey, noise, written

SIZE = (24, 17)

_FIRST_ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
"""EXIF 2.32, tag 0x0112: where row 0 and column 0 of what is stored lie in what was seen."""


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _turned()
    yield from _turned_oddly()


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera that was held so stores."""
    row, column = _FIRST_ROW_AND_COLUMN[orientation]
    lines = upright if row in ("top", "bottom") else upright.swapaxes(0, 1)
    lines = lines if row in ("top", "left") else lines[::-1]
    return np.ascontiguousarray(lines if column in ("left", "top") else lines[:, ::-1])


def as_upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What was seen, cell by cell the inverse of `as_stored`."""
    places = np.arange(stored.shape[0] * stored.shape[1])
    turned = orientation > 4
    upright_shape = stored.shape[1::-1] if turned else stored.shape[:2]
    order = as_stored(places.reshape(upright_shape), orientation).ravel()
    flat = np.empty_like(stored.reshape(-1, stored.shape[2]))
    flat[order] = stored.reshape(-1, stored.shape[2])
    return flat.reshape(*upright_shape, -1)


def _turned() -> Iterator[Case]:
    for orientation in _FIRST_ROW_AND_COLUMN:
        flags = ("exif_rotated",) * (orientation > 1)
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = noise(17, *SIZE, 3)
        stored = as_stored(upright, orientation)
        yield Case(17, f"PNG turned {orientation}", written(stored, "PNG", exif=exif), "ok", flags, upright)
        data = written(np.roll(stored, 1), "WEBP", lossless=True, exif=exif)
        yield Case(17, f"WebP turned {orientation}", data, "ok", flags, as_upright(np.roll(stored, 1), orientation))
        flat = blocks(18, 3, 4)
        data = written(as_stored(flat, orientation), "JPEG", quality=95, subsampling=0, exif=exif)
        yield Case(17, f"JPEG turned {orientation}", data, "ok", flags, flat, LOSSY)
        for compression in (1, 8):
            data = tiffs.strip(stored, 8, tiffs.RGB, compression, orientation=orientation)
            yield Case(17, f"TIFF turned {orientation}, {compression}", data, "ok", flags, upright)
        deep = noise(19, *SIZE, bits=16)
        stored = as_stored(deep, orientation)
        data = tiffs.strip(stored, 16, tiffs.BLACK_IS_ZERO, orientation=orientation)
        yield Case(17, f"16-bit TIFF turned {orientation}", data, "ok", ("sixteen_bit", *flags), grey(deep, 16))
        chunk = pngs.chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        data = pngs.png(stored, 16, pngs.GREY, before=chunk)
        yield Case(17, f"16-bit PNG turned {orientation}", data, "ok", ("sixteen_bit", *flags), grey(deep, 16))
        values = deep.astype(np.float32) / 257
        data = tiffs.strip(as_stored(values, orientation), 32, 1, 5, sample_format=3, orientation=orientation)
        expected = grey(np.rint(values).astype(int))
        yield Case(17, f"float TIFF turned {orientation}", data, "ok", ("float", *flags), expected)


def _turned_oddly() -> Iterator[Case]:
    """Orientations that are none turn nothing; the byte order of the block does not matter."""
    pixels = noise(170, *SIZE, 3)

    def block(order: str, kind: int, value: int | bytes) -> bytes:
        raw = value if isinstance(value, bytes) else struct.pack(order + ("H" if kind == 3 else "I"), value)
        head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
        return head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + raw.ljust(4, b"\0") + bytes(4)

    for order, kind, value in (("<", 3, 0), ("<", 3, 9), (">", 3, 65_535), ("<", 2, b"x"), ("<", 7, b"\6")):
        data = pngs.png(pixels, 8, pngs.RGB, before=pngs.chunk(b"eXIf", block(order, kind, value)))
        yield Case(17, f"PNG turned {value!r} of type {kind}", data, pixels=pixels)
    stored = as_stored(pixels, 6)
    for order, kind in (("<", 3), (">", 3), ("<", 4), (">", 4)):
        data = pngs.png(stored, 8, pngs.RGB, before=pngs.chunk(b"eXIf", block(order, kind, 6)))
        yield Case(17, f"PNG turned 6 in order {order}, type {kind}", data, "ok", ("exif_rotated",), pixels)
    for name, content in (("garbage", b"no TIFF at all"), ("cut", block("<", 3, 6)[:12]), ("empty", b"")):
        data = pngs.png(pixels, 8, pngs.RGB, before=pngs.chunk(b"eXIf", content))
        yield Case(17, f"PNG with {name} EXIF", data, pixels=pixels)
    flat = blocks(171, 3, 4)
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + b'<rdf:Description tiff:Orientation="8"/>'
    data = written(as_stored(flat, 8), "JPEG", quality=95, subsampling=0)
    data = data[:2] + jpegs.segment(jpegs.APP1, xmp) + data[2:]
    yield Case(17, "JPEG turned 8 in its XMP", data, "ok", ("exif_rotated",), flat, LOSSY)
