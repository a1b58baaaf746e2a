"""Rows 10 to 21, 23 and 28 of the catalogue: images that decode, with the pixels that the rules give."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from tests.images import jpegs, pngs, tiffs
from tests.images.bitmaps import bmp, packed_rows, run_lengths
from tests.images.case import LOSSY, Case, blocks, from_cmyk, from_ycc, grey, noise, slope, to_ycc, written

SIZE = (24, 17)


def cases() -> Iterator[Case]:
    """All of them."""
    for part in (_wrong_names, _cmyk_jpegs, _cmyk_tiffs, _deep_grey, _deep_colours, _jpegs, _profiles, _sizes):
        yield from part()


def _wrong_names() -> Iterator[Case]:
    """Content decides: no name is what it says."""
    picture, lossless = noise(10, *SIZE, 3), {"lossless": True}
    writers = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": lossless, "JPEG": {"quality": 100}}
    suffixes = (".jpg", ".PNG", ".gif", ".tif", ".webp", ".bmp", ".jpeg")
    for number, ((format, options), suffix) in enumerate(itertools.product(writers.items(), suffixes)):
        if suffix.lower().strip(".")[:3] == {"JPEG": "jpe"}.get(format, format.lower()[:3]) or number % 2:
            continue
        if format == "JPEG":
            pixels, tolerance = blocks(number, 3, 2), LOSSY
            data = written(pixels, format, subsampling=0, **options)
        else:
            pixels, tolerance = np.roll(picture, number, 1), 0
            data = written(pixels, format, **options)
        yield Case(10, f"{format} named {suffix}", data, pixels=pixels, tolerance=tolerance, suffix=suffix)


def _cmyk_jpegs() -> Iterator[Case]:
    for seed in range(3):
        ink = blocks(11 + seed, 3, 4, 4)
        pixels = from_cmyk(ink)
        data = written(Image.fromarray(ink, "CMYK"), "JPEG", quality=100, progressive=seed == 2)
        bare = jpegs.without(data, jpegs.APP14)
        yield Case(11, f"CMYK JPEG as Adobe writes it, {seed}", data, "ok", ("cmyk",), pixels, LOSSY)
        yield Case(11, f"CMYK JPEG without Adobe's mark, {seed}", bare, "ok", ("cmyk",), pixels, LOSSY)
        # Of the inks, cyan, magenta and yellow are turned to YCbCr; Pillow stores 255 less than it is given.
        stored = np.dstack([255 - to_ycc(ink[..., :3]), ink[..., 3]])
        plain = written(Image.fromarray(stored, "CMYK"), "JPEG", quality=100)
        ycck = jpegs.changed(plain, jpegs.APP14, 15, b"\2")
        yield Case(11, f"YCCK JPEG, {seed}", ycck, "ok", ("cmyk",), pixels, LOSSY)


def _cmyk_tiffs() -> Iterator[Case]:
    ink = noise(12, *SIZE, 4)
    deep = noise(13, *SIZE, 4, bits=16)
    for order, compression in itertools.product("<>", (1, 5, 8, 32773)):
        name = f"CMYK TIFF {order} of compression {compression}"
        data = tiffs.strip(ink, 8, tiffs.CMYK, compression, order)
        yield Case(12, name, data, "ok", ("cmyk",), from_cmyk(ink), 1)
    for order, compression in itertools.product("<>", (1, 8)):
        name = f"16-bit CMYK TIFF {order} of compression {compression}"
        data = tiffs.strip(deep, 16, tiffs.CMYK, compression, order)
        yield Case(12, name, data, "ok", ("cmyk", "sixteen_bit"), from_cmyk(deep >> 8), 1)
    yield Case(12, "CMYK TIFF in tiles", tiffs.tiles(ink, 8, tiffs.CMYK, 8), "ok", ("cmyk",), from_cmyk(ink), 1)
    yield Case(12, "CMYK TIFF in planes", tiffs.planes(ink, 8, tiffs.CMYK), "ok", ("cmyk",), from_cmyk(ink), 1)


def _deep_grey() -> Iterator[Case]:
    samples = noise(14, *SIZE, bits=16)
    samples[0, :8] = [0, 1, 128, 129, 257, 32_767, 32_768, 65_535]
    pixels, flags = grey(samples, 16), ("sixteen_bit",)
    for name, options in {"plain": {}, "filtered": {"filters": range(5)}, "interlaced": {"interlaced": True}}.items():
        data = pngs.png(samples, 16, pngs.GREY, **options)
        yield Case(13, f"16-bit grey PNG, {name}", data, "ok", flags, pixels)
    key = pngs.chunk(b"tRNS", b"\0\1")
    data = pngs.png(samples, 16, pngs.GREY, before=key)
    yield Case(13, "16-bit grey PNG with a clear value", data, "ok", (*flags, "alpha"), pixels)
    for order, compression in itertools.product("<>", (1, 5, 8, 32773)):
        data = tiffs.strip(samples, 16, tiffs.BLACK_IS_ZERO, compression, order)
        yield Case(13, f"16-bit grey TIFF {order} of compression {compression}", data, "ok", flags, pixels)
    data = tiffs.strip(samples, 16, tiffs.BLACK_IS_ZERO, big=True)
    yield Case(13, "16-bit grey BigTIFF", data, "ok", flags, pixels)
    yield Case(13, "16-bit grey TIFF in tiles", tiffs.tiles(samples, 16, tiffs.BLACK_IS_ZERO), "ok", flags, pixels)
    yield Case(13, "16-bit grey TIFF in strips", tiffs.strips(samples, 16, tiffs.BLACK_IS_ZERO, 8), "ok", flags, pixels)
    differences = np.diff(samples.astype(int), axis=1, prepend=0) % 65_536
    for compression in (5, 8):
        data = tiffs.strip(differences, 16, tiffs.BLACK_IS_ZERO, compression, predictor=2)
        yield Case(13, f"16-bit grey TIFF of differences, {compression}", data, "ok", flags, pixels)
    twelve = noise(15, *SIZE, bits=12)
    twelve[0, :4] = [0, 8, 9, 4095]
    for compression in (1, 8):
        data = tiffs.strip(twelve, 12, tiffs.BLACK_IS_ZERO, compression)
        yield Case(13, f"12-bit grey TIFF of compression {compression}", data, "ok", flags, grey(twelve, 12))


def _deep_colours() -> Iterator[Case]:
    kinds = {"RGB": (pngs.RGB, 3), "grey and alpha": (pngs.GREY_ALPHA, 2), "RGB and alpha": (pngs.RGB_ALPHA, 4)}
    for number, (name, (colour, channels)) in enumerate(kinds.items()):
        samples = noise(16 + number, *SIZE, channels, bits=16)
        flags = ("sixteen_bit",) + ("alpha",) * (channels != 3)
        pixels = (samples[..., : channels // 2 * 2 - 1 if channels != 3 else 3] >> 8).astype(np.uint8)
        pixels = np.broadcast_to(pixels, (*SIZE, 3))
        for interlaced in (False, True):
            data = pngs.png(samples, 16, colour, interlaced=interlaced, filters=(4, 3, 2, 1))
            yield Case(14, f"16-bit {name} PNG{', interlaced' * interlaced}", data, "ok", flags, pixels)
    samples = noise(19, *SIZE, 3, bits=16)
    pixels, flags = (samples >> 8).astype(np.uint8), ("sixteen_bit",)
    key = pngs.chunk(b"tRNS", b"\0\1\0\2\0\3")
    data = pngs.png(samples, 16, pngs.RGB, before=key)
    yield Case(14, "16-bit RGB PNG with a clear colour", data, "ok", (*flags, "alpha"), pixels)
    for order, compression in itertools.product("<>", (1, 5, 8)):
        data = tiffs.strip(samples, 16, tiffs.RGB, compression, order)
        yield Case(14, f"16-bit RGB TIFF {order} of compression {compression}", data, "ok", flags, pixels)
    yield Case(14, "16-bit RGB TIFF in packed planes", tiffs.planes(samples, 16, tiffs.RGB, 8), "ok", flags, pixels)
    yield Case(14, "16-bit RGB TIFF in tiles", tiffs.tiles(samples, 16, tiffs.RGB, 8), "ok", flags, pixels)
    rgba = noise(20, *SIZE, 4, bits=16)
    pixels = (rgba[..., :3] >> 8).astype(np.uint8)
    for extra, more in ((0, ()), (2, ("alpha",))):
        data = tiffs.strip(rgba, 16, tiffs.RGB, extra=extra)
        yield Case(14, f"16-bit RGB TIFF with another channel, {extra}", data, "ok", (*flags, *more), pixels)


def _jpegs() -> Iterator[Case]:
    flat, smooth, one = blocks(21, 4, 5), slope(50, 61), blocks(22, 4, 5, 1)[..., 0]
    for progressive, quality in itertools.product((False, True), (80, 90, 95, 100)):
        kind = f"{'progressive' if progressive else 'baseline'} JPEG of quality {quality}"
        data = written(flat, "JPEG", quality=quality, progressive=progressive, subsampling=0)
        yield Case(21, kind, data, pixels=flat, tolerance=LOSSY)
        data = written(one, "JPEG", quality=quality, progressive=progressive)
        yield Case(21, f"grey {kind}", data, pixels=grey(one), tolerance=LOSSY)
    for progressive, subsampling in itertools.product((False, True), (1, 2)):
        data = written(smooth, "JPEG", quality=99, progressive=progressive, subsampling=subsampling)
        name = f"{'progressive' if progressive else 'baseline'} JPEG of subsampling {subsampling}"
        yield Case(21, name, data, pixels=smooth, tolerance=LOSSY)
    for name, options in {
        "with restarts": {"restart_marker_blocks": 3},
        "with tables of its own": {"optimize": True},
        "of RGB": {"keep_rgb": True},
    }.items():
        data = written(flat, "JPEG", quality=92, subsampling=0, **options)
        yield Case(21, f"JPEG {name}", data, pixels=flat, tolerance=LOSSY)
    data = jpegs.changed(written(flat, "JPEG", quality=91, subsampling=0), jpegs.SOF0, 1, b"\xc1")
    yield Case(21, "extended JPEG", data, pixels=flat, tolerance=LOSSY)
    data = written(flat, "JPEG", quality=93, subsampling=0) + b"\0" * 99
    yield Case(21, "JPEG with zeros behind it", data, pixels=flat, tolerance=LOSSY)
    strays = {
        "filled up": b"\xff\xff\xff",
        "with a zero": b"\0",
        "with an escape": b"\xff\0",
        "with a mark": b"\xff\xd0",
    }
    for name, stray in strays.items():
        place = jpegs.find(data, jpegs.SOF0)[0]
        yield Case(
            21, f"JPEG {name} before its frame", data[:place] + stray + data[place:], pixels=flat, tolerance=LOSSY
        )
    rng = np.random.default_rng(23)
    for seed in range(3):
        values = rng.choice([0, 1, -1, 5, -16, 17, 33, -65], (3 + seed, 4))
        pixels = grey((values + 128).repeat(8, 0).repeat(8, 1))
        yield Case(21, f"arithmetic grey JPEG, {seed}", jpegs.arithmetic([values]), pixels=pixels)
        planes = [rng.integers(-16, 17, (3, 4 + seed)) for _ in range(3)]
        pixels = from_ycc(np.stack([plane + 128 for plane in planes], 2)).repeat(8, 0).repeat(8, 1)
        yield Case(21, f"arithmetic JPEG, {seed}", jpegs.arithmetic(planes), pixels=pixels, tolerance=LOSSY)
    for seed in (24, 25):
        samples = noise(seed, seed, 17)
        yield Case(21, f"lossless JPEG, {seed}", jpegs.lossless(samples), pixels=grey(samples))


def _profiles() -> Iterator[Case]:
    pixels, flags = noise(26, *SIZE, 3), ("icc_profile",)
    good = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = {"good": good, "cut": good[:100], "garbage": noise(27, 300).tobytes(), "wrong": b"\0" * 128}
    for name, profile in profiles.items():
        chunk = pngs.chunk(b"iCCP", b"Profile\0\0" + zlib.compress(profile))
        data = pngs.png(pixels, 8, pngs.RGB, before=chunk)
        yield Case(23, f"PNG with a {name} profile", data, "ok", flags, pixels)
        data = written(pixels, "WEBP", lossless=True, icc_profile=profile)
        yield Case(23, f"WebP with a {name} profile", data, "ok", flags, pixels)
        tag = {34_675: (7, list(profile))}
        data = tiffs.tiff([({**tiffs.tags(pixels, 8, tiffs.RGB), **tag}, [pixels.tobytes()])])
        yield Case(23, f"TIFF with a {name} profile", data, "ok", flags, pixels)
        flat = blocks(len(profile), 2, 3)
        data = written(flat, "JPEG", quality=95, subsampling=0, icc_profile=profile)
        yield Case(23, f"JPEG with a {name} profile", data, "ok", flags, flat, LOSSY)
    chunk = pngs.chunk(b"iCCP", b"Profile\0\0garbage, not packed")
    data = pngs.png(pixels, 8, pngs.RGB, before=chunk)
    yield Case(23, "PNG with a profile that is not packed", data, "ok", flags, pixels)
    data = written(flat, "JPEG", quality=95, subsampling=0)
    data = data[:2] + jpegs.segment(0xE2, b"ICC_PROFILE\0\1\3half of it") + data[2:]
    yield Case(23, "JPEG with one of three parts of a profile", data, "ok", flags, flat, LOSSY)


def _sizes() -> Iterator[Case]:
    sizes = [(1, 1), (1, 65_535), (65_535, 1), (3, 2000), (2000, 3), (1, 2), (7, 1), (31, 33), (32, 32), (33, 31)]
    for number, (height, width) in enumerate(sizes):
        samples, pixels = noise(280 + number, height, width), noise(290 + number, height, width, 3)
        name = f"of {width} x {height}"
        yield Case(28, f"PNG {name}", pngs.png(samples, 8, pngs.GREY), pixels=grey(samples))
        yield Case(28, f"BMP {name}", bmp(packed_rows(pixels[..., ::-1], 8), (height, width), 24), pixels=pixels)
        yield Case(28, f"TIFF {name}", tiffs.strips(pixels, 8, tiffs.RGB, 8, rows=64), pixels=pixels)
        flat = np.full((height, width), 25 * number, np.uint8)
        if max(height, width) < 65_501:  # Pillow's writer goes no further
            yield Case(28, f"JPEG {name}", written(flat, "JPEG", quality=95), pixels=grey(flat), tolerance=LOSSY)
        if max(height, width) < 16_384:
            yield Case(28, f"WebP {name}", written(pixels, "WEBP", lossless=True), pixels=pixels)
    row = written(np.full((1, 65_500), 77, np.uint8), "JPEG")
    yield Case(28, "JPEG of 65500 x 1", row, pixels=np.full((1, 65_500, 3), 77, np.uint8), tolerance=LOSSY)
    yield Case(28, "BMP of 3 x 2000 in run lengths", *_run_length_bmp())


def _run_length_bmp() -> tuple[bytes, str, tuple[str, ...], np.ndarray]:
    indices, colours = noise(30, 2000, 3), noise(31, 256, 3)
    data = bmp(run_lengths(indices), indices.shape, 8, palette=colours, compression=1)
    return data, "ok", ("palette",), colours[indices]
