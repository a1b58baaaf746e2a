"""Rows 25 to 27 of the catalogue: images that are, or promise to be, too much."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tests.images import jpegs, pngs, tiffs
from tests.images.bitmaps import bmp, webp, webp_canvas, webp_chunk
from tests.images.case import Case, noise, written


def cases() -> Iterator[Case]:
    """All of them."""
    for part in (_too_big, _too_big_and_whole, _bombs):
        yield from part()


def _too_big() -> Iterator[Case]:
    pixel = np.zeros((1, 1, 3), np.uint8)
    idat = pngs.chunk(b"IDAT", zlib.compress(bytes(100)))
    jpeg, gif = written(pixel, "JPEG"), written(Image.fromarray(pixel[..., 0]), "GIF")
    frame = gif.index(b",", 13)

    def page(size: tuple[int, int], **more: int) -> bytes:
        sizes = {tiffs.HEIGHT: (4, [size[0]]), tiffs.WIDTH: (4, [size[1]]), tiffs.STRIP_ROWS: (4, [size[0]])}
        return tiffs.tiff([({**tiffs.tags(pixel, 8, tiffs.RGB, 8, **more), **sizes}, [zlib.compress(bytes(100))])])

    headers: dict[str, Callable[[int, int], bytes]] = {
        "PNG": lambda height, width: pngs.whole(pngs.header(width, height, 8, pngs.RGB), idat),
        "16-bit PNG": lambda height, width: pngs.whole(pngs.header(width, height, 16, pngs.RGB_ALPHA), idat),
        "JPEG": lambda height, width: jpegs.changed(jpeg, jpegs.SOF0, 5, struct.pack(">HH", height, width)),
        "GIF": lambda height, width: gif[:6] + struct.pack("<HH", width, height) + gif[10:],
        "GIF frame": lambda height, width: gif[: frame + 5] + struct.pack("<HH", width, height) + gif[frame + 9 :],
        "BMP": lambda height, width: bmp([bytes(4)], (height, width), 24),
        "BMP, upside down": lambda height, width: bmp([bytes(4)], (height, width), 24, top_down=True),
        "TIFF": lambda height, width: page((height, width)),
        "WebP canvas": lambda height, width: webp(webp_canvas(height, width, 2)),
        "lossy WebP": lambda height, width: webp(
            webp_chunk(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20))
        ),
        "lossless WebP": lambda height, width: webp(
            webp_chunk(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(20))
        ),
    }
    for name, make in headers.items():
        wide = 100_000 if name in ("PNG", "16-bit PNG", "TIFF", "WebP canvas") else 65_535
        for height, width in ((wide, wide), (8_001, 8_000), (4_500, 15_000)):
            if name in ("lossy WebP", "lossless WebP"):
                height, width = min(height, 16_383), min(width, 16_383)
            yield Case(25, f"{name} of {width} x {height}", make(height, width), "too_big")
    yield Case(25, "PNG of the greatest size", headers["PNG"](2**31 - 1, 2**31 - 1), "too_big")
    yield Case(25, "TIFF of the greatest size", page((2**32 - 1, 2**32 - 1)), "too_big")
    tile = {"tile_width": 40_000, "tile_height": 40_000}
    yield Case(25, "TIFF of one pixel in a tile of 40000 x 40000", page((1, 1), **tile), "too_big")
    for number, odd in enumerate(((3, [1] * 99), (11, [2.0]))):
        # Beyond the end of the file, or no integer: decoders differ on what that stands for, so none is asked.
        tags = {**tiffs.tags(pixel, 8, tiffs.RGB, 8, **tile), tiffs.PHOTOMETRIC: odd}
        data = tiffs.tiff([(tags, [zlib.compress(bytes(100))])])
        if odd[0] == 3:
            data = data.replace(struct.pack("<HHI", tiffs.PHOTOMETRIC, 3, 99), struct.pack("<HHI", 262, 3, 9999))
        status = "truncated" if odd[0] == 3 else "corrupt"
        yield Case(25, f"TIFF in such a tile, and an odd tag, {number}", data, status)
    more = {"tile_height": 40_000, "tile_width": 16}
    for twice in ((40_000, 16), (16, 40_000)):  # the tag before that of the tile's width is made to be it too
        tags = {**tiffs.tags(pixel, 8, tiffs.RGB, 8, **more), 321: (4, twice[:1]), tiffs.TILE_WIDTH: (4, twice[1:])}
        data = tiffs.tiff([(tags, [zlib.compress(bytes(100))])]).replace(b"\x41\1\4\0", b"\x42\1\4\0")
        yield Case(25, f"TIFF in a tile of two widths, {twice}", data, "too_big")


def _too_big_and_whole() -> Iterator[Case]:
    """All rows are there: a decoder would give 144 megapixels."""
    side = 12_000
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    header = pngs.header(side, side, 1, pngs.GREY)
    yield Case(26, "PNG of 12000 x 12000, 1 bit", pngs.whole(header, pngs.chunk(b"IDAT", rows)), "too_big")
    rows = zlib.compress(bytes(side * side // 8), 9)
    sizes = {tiffs.HEIGHT: (4, [side]), tiffs.WIDTH: (4, [side]), tiffs.STRIP_ROWS: (4, [side])}
    page = ({**tiffs.tags(np.zeros((1, 1)), 1, tiffs.BLACK_IS_ZERO, 8), **sizes}, [rows])
    yield Case(26, "TIFF of 12000 x 12000, 1 bit", tiffs.tiff([page]), "too_big")
    tile = 16_384
    tags = tiffs.tags(np.zeros((16, 16)), 8, tiffs.BLACK_IS_ZERO, 8, tile_width=tile, tile_height=tile)
    data = tiffs.tiff([(tags, [zlib.compress(bytes(tile * tile), 1)])])
    yield Case(26, "TIFF of 16 x 16 in a tile of 16384 x 16384", data, "too_big")
    lines = b"".join(struct.pack("<BB", 255, 0) * (side // 255) + b"\0\0" for _ in range(60)) + b"\0\1"
    data = bmp(lines, (side, side), 8, palette=noise(26, 256, 3), compression=1)
    yield Case(26, "BMP of 12000 x 12000, run lengths", data, "too_big")


def _bombs() -> Iterator[Case]:
    picture = noise(27, 24, 17, 3)
    zeros = zlib.compress(bytes(64_000_000), 9)
    chunks = {
        "zTXt": pngs.chunk(b"zTXt", b"Comment\0\0" + zeros),
        "iTXt": pngs.chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros),
        "iCCP": pngs.chunk(b"iCCP", b"Profile\0\0" + zeros),
    }
    for name, chunk in chunks.items():
        yield Case(27, f"PNG with 64 MB in {name}", pngs.png(picture, 8, pngs.RGB, before=chunk), "corrupt")
    for name in ("zTXt", "iTXt"):
        data = pngs.png(picture, 8, pngs.RGB, after=chunks[name])
        yield Case(27, f"PNG with 64 MB in {name} behind its pixels", data, "corrupt")
