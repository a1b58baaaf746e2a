"""Row 22 of the catalogue: kinds of an accepted format that are not decoded, though nothing is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.images import jpegs, tiffs
from tests.images.bitmaps import bmp, packed_rows
from tests.images.case import Case, noise, written

SIZE = (24, 17)


def cases() -> Iterator[Case]:
    """All of them."""
    plain, progressive = (written(noise(220, *SIZE, 3), "JPEG", progressive=flag) for flag in (False, True))
    extended = jpegs.changed(plain, jpegs.SOF0, 1, b"\xc1")
    denied = {
        "JPEG of 12 bits": jpegs.changed(extended, 0xC1, 4, b"\x0c"),
        "progressive JPEG of 12 bits": jpegs.changed(progressive, jpegs.SOF2, 4, b"\x0c"),
        "lossless JPEG of 12 bits": jpegs.lossless(noise(221, *SIZE, bits=12), 12),
        "lossless JPEG of 16 bits": jpegs.lossless(noise(222, *SIZE, bits=16), 16),
        "JPEG of two channels": jpegs.changed(plain, jpegs.SOF0, 9, b"\2"),
        "JPEG of five channels": jpegs.changed(plain, jpegs.SOF0, 9, b"\5"),
    }
    for kind in (5, 6, 7, 11, 13, 14, 15):
        denied[f"JPEG of SOF{kind}"] = jpegs.changed(plain, jpegs.SOF0, 1, bytes([0xC0 + kind]))
    eight, deep, rgb = noise(223, *SIZE), noise(224, *SIZE, bits=16), noise(225, *SIZE, 3, bits=16)
    unit = np.random.default_rng(226).random(SIZE)
    black, white = tiffs.BLACK_IS_ZERO, tiffs.WHITE_IS_ZERO
    for order in "<>":
        denied |= {
            f"TIFF {order} of 8 bits with a sign": tiffs.strip(eight, 8, black, 1, order, sample_format=2),
            f"TIFF {order} of 16 bits with a sign": tiffs.strip(deep, 16, black, 1, order, sample_format=2),
            f"TIFF {order} of 16 bits, white is 0": tiffs.strip(deep, 16, white, 8, order),
            f"TIFF {order} of 64-bit floats": tiffs.strip(unit, 64, black, 1, order, sample_format=3),
            f"TIFF {order} of 16-bit floats": tiffs.strip(unit.astype("f2"), 16, black, 1, order, sample_format=3),
            f"TIFF {order} of floats, white is 0": tiffs.strip(unit.astype("f4"), 32, white, 1, order, sample_format=3),
            f"TIFF {order} of complex numbers": tiffs.strip(unit, 64, black, 1, order, sample_format=6),
        }
    words = deep.astype("<u4") * 9
    three = np.dstack([unit] * 3).astype("f4")
    page = tiffs.tags(words, 32, black)
    denied |= {
        "TIFF of 32-bit integers": tiffs.tiff([(page, [words.tobytes()])]),
        "TIFF of 32-bit integers with a sign": tiffs.tiff([({**page, 339: (3, [2])}, [words.tobytes()])]),
        "TIFF of float colours": tiffs.strip(three, 32, tiffs.RGB, 8, sample_format=[3, 3, 3]),
        "TIFF of 16 bits in planes": tiffs.planes(rgb, 16, tiffs.RGB),
        "TIFF of 12 bits, MM": tiffs.strip(noise(227, *SIZE, bits=12), 12, black, 1, ">"),
        "TIFF of 3 bits": tiffs.strip(noise(228, *SIZE, bits=3), 3, black),
        "TIFF of ten channels": tiffs.strip(noise(229, *SIZE, 10), 8, black, extra=[0] * 9),
        "YCbCr TIFF of halved colours": tiffs.strip(noise(230, *SIZE, 3), 8, tiffs.YCBCR, subsampling=[2, 2]),
        "BigTIFF, MM": tiffs.strip(eight, 8, black, 1, ">", big=True),
    }
    for compression in (6, 9, 32_771, 32_809, 34_661, 34_676, 34_712, 34_887, 50_001, 50_002, 65_000):
        tags = tiffs.tags(eight, 8, black, compression)
        denied[f"TIFF of compression {compression}"] = tiffs.tiff([(tags, [eight.tobytes()])])
    rows = packed_rows(noise(231, *SIZE, 3), 8)
    for compression in (4, 5, 11):
        denied[f"BMP of compression {compression}"] = bmp(rows, SIZE, 24, compression=compression)
    denied["BMP of 2 bits"] = bmp(packed_rows(noise(232, *SIZE, bits=2), 2), SIZE, 2, palette=noise(233, 4, 3))
    denied["BMP of 64 bits"] = bmp(packed_rows(noise(234, *SIZE, 4, bits=16), 16), SIZE, 64)
    denied["BMP of other masks"] = bmp(rows, SIZE, 16, compression=3, masks=(0xF00, 0xF0, 0xF))
    for name, data in denied.items():
        yield Case(22, name, data, "format_denied")
