"""Rows 4 to 9 of the catalogue: images that were cut or changed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.images import jpegs, pngs, tiffs
from tests.images.bitmaps import bmp, packed_rows, webp, webp_chunk
from tests.images.case import Case, noise, written

FIVE = (0.1, 0.3, 0.5, 0.7, 0.9)


def cases() -> Iterator[Case]:
    """All of them."""
    for part in (_cut_jpegs, _cut_pngs, _cut_others, _no_end, _wrong_data, _wrong_headers, _flipped):
        yield from part()


def _cut_jpegs() -> Iterator[Case]:
    picture = noise(4, 40, 56, 3)
    exif = Image.Exif()
    exif[0x0112] = 1
    thumbnail = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0") + written(picture[::4, ::4], "JPEG")
    plain = written(picture, "JPEG")
    kinds = {
        "JPEG": plain,
        "progressive JPEG": written(picture, "JPEG", progressive=True),
        "CMYK JPEG": written(Image.fromarray(noise(41, 40, 56, 4), "CMYK"), "JPEG"),
        "lossless JPEG": jpegs.lossless(noise(42, 40, 56)),
        "arithmetic JPEG": jpegs.arithmetic([np.random.default_rng(43).integers(-16, 17, (9, 9))]),
        "JPEG with restarts": written(picture[..., 0], "JPEG", restart_marker_blocks=1),
        "JPEG with a thumbnail": plain[:2] + jpegs.segment(jpegs.APP1, thumbnail) + plain[2:],
    }
    for name, data in kinds.items():
        for share in FIVE:
            yield Case(4, f"{name} cut at {share:.0%}", data[: int(len(data) * share)], "truncated")
        yield Case(4, f"{name} without its last two bytes", data[:-2], "truncated")
        half = data[: len(data) // 2]
        yield Case(4, f"{name}, half of it zeros", half + bytes(len(data) - len(half)), "truncated")
    yield Case(4, "JPEG without its last byte", plain[:-1], "truncated")
    yield Case(4, "first four bytes of a JPEG", plain[:4], "truncated")


def _sound_pngs() -> dict[str, bytes]:
    colours = pngs.chunk(b"PLTE", noise(52, 48).tobytes())
    return {
        "PNG": pngs.png(noise(5, 40, 56, 3), 8, pngs.RGB, filters=range(5)),
        "PNG of one bit": pngs.png(noise(51, 90, 131, bits=1), 1, pngs.GREY),
        "palette PNG": pngs.png(noise(53, 40, 56, bits=4), 4, pngs.PALETTE, before=colours),
        "16-bit PNG": pngs.png(noise(54, 40, 56, 4, bits=16), 16, pngs.RGB_ALPHA, parts=4),
        "interlaced PNG": pngs.png(noise(55, 40, 56, 2), 8, pngs.GREY_ALPHA, interlaced=True),
        "animated PNG": pngs.animation([noise(seed, 24, 17, 3) for seed in (56, 57)]),
    }


def _cut_pngs() -> Iterator[Case]:
    for name, data in _sound_pngs().items():
        for share in FIVE:
            yield Case(5, f"{name} cut at {share:.0%}", data[: int(len(data) * share)], "truncated")
    rows = pngs.scanlines(noise(58, 40, 56, 3), 8)
    header, packed = pngs.header(56, 40, 8, pngs.RGB), zlib.compress(rows)
    short = zlib.compress(rows[:-5])
    yield Case(5, "PNG of too few rows", pngs.whole(header, pngs.chunk(b"IDAT", short)), "truncated")
    half = pngs.chunk(b"IDAT", packed[: len(packed) // 2])
    yield Case(5, "PNG of half its data", pngs.whole(header, half), "truncated")
    yield Case(5, "PNG of empty data", pngs.whole(header, pngs.chunk(b"IDAT")), "truncated")


def _cut_others() -> Iterator[Case]:
    picture = noise(59, 40, 56, 3)
    palette = Image.fromarray(noise(60, 40, 56))
    palette.putpalette(noise(61, 768).tobytes())
    frames = [Image.fromarray(noise(seed, 24, 17, 3)) for seed in (62, 63)]
    kinds = {
        "GIF": written(palette, "GIF"),
        "WebP": written(picture, "WEBP"),
        "lossless WebP": written(picture, "WEBP", lossless=True),
        "animated WebP": written(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "BMP": written(picture, "BMP"),
        "BMP of one bit": bmp(packed_rows(noise(64, 40, 56, bits=1), 1), (40, 56), 1, palette=noise(65, 2, 3)),
        "TIFF, directory first": written(picture, "TIFF"),
        "TIFF, directory last": tiffs.strips(picture, 8, tiffs.RGB, 8),
        "TIFF in tiles": tiffs.tiles(picture, 8, tiffs.RGB, 5),
        "TIFF of Pillow, LZW": written(picture, "TIFF", compression="tiff_lzw"),
    }
    for name, data in kinds.items():
        for share in FIVE:
            yield Case(5, f"{name} cut at {share:.0%}", data[: int(len(data) * share)], "truncated")
    for big in (False, True):
        data = tiffs.strip(noise(66 + big, 24, 17), 8, tiffs.BLACK_IS_ZERO, 8, big=big)
        size, head, entries = (8, 8, 8) if big else (4, 4, 2)
        (start,) = struct.unpack_from("<Q" if big else "<I", data, head)
        places = {"directory": (head, size), "entries": (start, entries), "widths": (start + entries + 4, size)}
        for name, (place, length) in places.items():
            absurd = data[:place] + b"\xff" * length + data[place + length :]
            yield Case(5, f"{'Big' * big}TIFF with {name} beyond its end", absurd, "truncated")


def _no_end() -> Iterator[Case]:
    for name, data in _sound_pngs().items():
        yield Case(6, f"{name} without IEND", data[:-12], "truncated")
    data = pngs.png(noise(6, 24, 17, 3), 8, pngs.RGB)
    for count in (1, 4, 8, 11):
        yield Case(6, f"PNG without its last {count} bytes", data[:-count], "truncated")
    yield Case(6, "PNG with text for IEND", data[:-12] + pngs.chunk(b"tEXt", b"End\0of it"), "truncated")


def _wrong_data() -> Iterator[Case]:
    colours, see_through = pngs.chunk(b"PLTE", noise(7, 48).tobytes()), pngs.chunk(b"tRNS", bytes(4))
    text = pngs.chunk(b"tEXt", b"Title\0A picture")
    exif = pngs.chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    data = pngs.png(
        noise(71, 24, 17, bits=4), 4, pngs.PALETTE, before=colours + see_through + text, after=exif, parts=2
    )
    animated = pngs.animation([noise(seed, 24, 17, 3) for seed in (72, 73)])
    for whole, kinds in (
        (data, (b"PLTE", b"tRNS", b"tEXt", b"IDAT", b"eXIf", b"IEND")),
        (animated, (b"fcTL", b"fdAT")),
    ):
        for kind in kinds:
            place = whole.index(kind) + 4 + (kind != b"IEND")  # in its content, or in the checksum of IEND
            yield Case(7, f"PNG with a wrong {kind.decode()}", _flip(whole, place), "corrupt")
    yield Case(7, "PNG with a wrong second IDAT", _flip(data, data.rindex(b"IDAT") + 9), "corrupt")
    yield Case(7, "PNG, half of it zeros", data[: len(data) // 2] + bytes(len(data) // 2), "corrupt")
    header = pngs.header(17, 24, 8, pngs.RGB)
    rows = pngs.scanlines(noise(74, 24, 17, 3), 8)
    packed = zlib.compress(rows)
    wrong = {
        "no zlib header": b"\0\0" + packed[2:],
        "a wrong bit in its data": _flip(packed, 100),
        "no zlib data": noise(75, 500).tobytes(),
        "filter 5": zlib.compress(b"\5" + rows[1:]),
        "filter 200 in its last row": zlib.compress(rows[:-52] + b"\xc8" + rows[-51:]),
    }
    for name, idat in wrong.items():
        yield Case(7, f"PNG with {name}, and right checksums", pngs.whole(header, pngs.chunk(b"IDAT", idat)), "corrupt")
    gif = written(Image.fromarray(noise(76, 24, 17)), "GIF")
    first = gif.index(b",", 13 + 768) + 12  # of the codes
    yield Case(7, "GIF with wrong codes", _flip(gif, *range(first, first + 4)), "corrupt")
    webp_data = written(noise(77, 24, 17, 3), "WEBP", lossless=True)
    yield Case(7, "lossless WebP with a wrong byte", _flip(webp_data, 40), "corrupt")
    for compression in (5, 8):
        sound = tiffs.strip(noise(78, 24, 17, 3), 8, tiffs.RGB, compression)
        yield Case(7, f"TIFF of compression {compression} with wrong bytes", _flip(sound, 10, 11, 12, 60), "corrupt")
    picture = noise(85, 24, 17, 3)
    for compression in (1, 8):
        wide = tiffs.strips(picture, 8, tiffs.RGB, compression)
        cut_short = wide.replace(struct.pack("<HHII", 257, 4, 1, 24), struct.pack("<HHII", 257, 4, 1, 31))
        yield Case(7, f"TIFF with too few strips, {compression}", cut_short, "corrupt")
        tiled = tiffs.tiles(picture, 8, tiffs.RGB, compression)
        cut_short = tiled.replace(struct.pack("<HHII", 256, 4, 1, 17), struct.pack("<HHII", 256, 4, 1, 33))
        yield Case(7, f"TIFF with too few tiles, {compression}", cut_short, "corrupt")
        tags = tiffs.tags(picture, 8, tiffs.RGB, compression, planes=2)
        parts = [tiffs.COMPRESSORS[compression](picture[..., channel].tobytes()) for channel in (0, 1)]
        yield Case(7, f"TIFF with two planes of three, {compression}", tiffs.tiff([(tags, parts)]), "corrupt")
    for name, marker in (("tables", jpegs.DQT), ("frame", jpegs.SOF0), ("scan", jpegs.SOS)):
        data = jpegs.without(written(noise(79, 24, 17), "JPEG"), marker)
        yield Case(7, f"JPEG without {name}", data, "corrupt")
    yield Case(7, "JPEG of garbage", b"\xff\xd8\xff" + noise(80, 500).tobytes() + jpegs.EOI, "corrupt")
    yield Case(7, "WebP of garbage", webp(webp_chunk(b"VP8 ", bytes(32))), "corrupt")


def _wrong_headers() -> Iterator[Case]:
    idat = pngs.chunk(b"IDAT", zlib.compress(pngs.scanlines(noise(8, 24, 17, 3), 8)))
    data = pngs.whole(pngs.header(17, 24, 8, pngs.RGB), idat)
    for place, name in ((18, "width"), (22, "height"), (24, "depth"), (25, "colour"), (30, "checksum")):
        yield Case(8, f"PNG with a wrong byte in its {name}", _flip(data, place), "corrupt")
    for width, height in ((0, 24), (17, 0), (0, 0)):
        header = pngs.header(width, height, 8, pngs.RGB)
        yield Case(8, f"PNG of {width} x {height}", pngs.whole(header, idat), "corrupt")
    for depth, colour in ((3, 0), (32, 0), (4, 2), (16, 3), (2, 4), (8, 1), (8, 5), (8, 7)):
        header = pngs.header(17, 24, depth, colour)
        yield Case(8, f"PNG of depth {depth} and colour {colour}", pngs.whole(header, idat), "corrupt")
    for methods in ((1, 0, 0), (0, 1, 0), (0, 0, 2)):
        header = pngs.header(17, 24, 8, pngs.RGB, methods)
        yield Case(8, f"PNG of methods {methods}", pngs.whole(header, idat), "corrupt")
    yield Case(8, "PNG without a header", pngs.whole(idat), "corrupt")
    yield Case(
        8, "PNG whose header comes second", pngs.whole(pngs.chunk(b"tEXt", b"a\0b"), data[8:33], idat), "corrupt"
    )
    yield Case(8, "PNG without data", pngs.whole(pngs.header(17, 24, 8, pngs.RGB)), "corrupt")
    yield Case(8, "PNG with a palette that is not there", pngs.png(noise(81, 9, 9), 8, pngs.PALETTE), "corrupt")
    jpeg = written(noise(82, 24, 17), "JPEG")
    for name, offset in (("height", 5), ("width", 7)):
        yield Case(8, f"JPEG of {name} 0", jpegs.changed(jpeg, jpegs.SOF0, offset, b"\0\0"), "corrupt")
    picture = noise(83, 24, 17, 3)
    rows = packed_rows(picture[..., ::-1], 8)
    for size in ((0, 17), (24, 0)):
        yield Case(8, f"BMP of {size[1]} x {size[0]}", bmp(rows, size, 24), "corrupt")
        empty = {tiffs.HEIGHT: (4, [size[0]]), tiffs.WIDTH: (4, [size[1]])}
        page = ({**tiffs.tags(picture, 8, tiffs.RGB), **empty}, [picture.tobytes()])
        yield Case(8, f"TIFF of {size[1]} x {size[0]}", tiffs.tiff([page]), "corrupt")
    gif = written(Image.fromarray(noise(84, 24, 17)), "GIF")
    frame = gif.index(b",", 13 + 768)
    yield Case(8, "GIF without a frame", gif[:frame] + b";", "corrupt")


def _flipped() -> Iterator[Case]:
    """Nothing tells that these were changed: what was asked for comes, with other pixels."""
    for seed in range(6):
        shape = (48 + seed, 64, 3)
        data = written(noise(90 + seed, *shape), "JPEG", quality=60 + 5 * seed)
        data = jpegs.flipped_in_scan(data, 20, np.random.default_rng(seed))
        yield Case(9, f"JPEG with 20 changed bytes, {seed}", data, size=shape[:2])


def _flip(data: bytes, *places: int) -> bytes:
    result = bytearray(data)
    for place in places:
        result[place] ^= 0xFF
    return bytes(result)
