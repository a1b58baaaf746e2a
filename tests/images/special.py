"""Rows 15 and 16 of the catalogue: floats, few bits, palettes, alpha, and other ways to store RGB."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tests.images import pngs, tiffs
from tests.images.bitmaps import bmp, packed_rows, run_lengths
from tests.images.case import LOSSY, Case, from_ycc, grey, indexed, noise, slope, to_ycc, written

SIZE = (24, 17)


def cases() -> Iterator[Case]:
    """All of them."""
    for part in (_floats, _few_bits, _palettes, _alpha, _other_colours):
        yield from part()


def _floats() -> Iterator[Case]:
    rng = np.random.default_rng(15)
    unit = rng.random(SIZE, np.float32)
    unit[0, :3] = [0, 0.5, 1]
    byte = (rng.random(SIZE, np.float32) * 400 - 50).astype(np.float32)
    kinds = {
        "within 0..1": (unit, np.rint(unit.astype(float) * 255)),
        "beyond 0..255": (byte, np.clip(np.rint(byte.astype(float)), 0, 255)),
        "of zeros": (np.zeros(SIZE, np.float32), np.zeros(SIZE)),
        "of one value": (np.full(SIZE, 1.5, np.float32), np.full(SIZE, 2)),
        "a little below 0": (unit - np.float32(0.25), np.clip(np.rint(unit.astype(float) - 0.25), 0, 255)),
    }
    for (name, (values, expected)), order in itertools.product(kinds.items(), "<>"):
        for compression in (1, 8) if "0" in name else (5,):
            data = tiffs.strip(values, 32, tiffs.BLACK_IS_ZERO, compression, order, sample_format=3)
            pixels = grey(expected.astype(int))
            title = f"float TIFF {name}, {order} of compression {compression}"
            yield Case(15, title, data, "ok", ("float",), pixels, 1)
    data = tiffs.tiles(unit, 32, tiffs.BLACK_IS_ZERO, 8, sample_format=3)
    yield Case(
        15, "float TIFF in tiles", data, "ok", ("float",), grey(np.rint(unit.astype(float) * 255).astype(int)), 1
    )
    for value, order, compression in itertools.product((np.nan, np.inf, -np.inf), "<>", (1, 8)):
        values = unit.copy()
        values[-1, -1] = value
        data = tiffs.strip(values, 32, tiffs.BLACK_IS_ZERO, compression, order, sample_format=3)
        yield Case(15, f"float TIFF with {value}, {order} of compression {compression}", data, "non_finite")


def _few_bits() -> Iterator[Case]:
    for bits, interlaced in itertools.product((1, 2, 4), (False, True)):
        samples = noise(160 + bits, *SIZE, bits=bits)
        data = pngs.png(samples, bits, pngs.GREY, interlaced=interlaced)
        yield Case(16, f"grey PNG of {bits} bits{', interlaced' * interlaced}", data, pixels=grey(samples, bits))
    for bits, compression in itertools.product((1, 2, 4, 8), (1, 5, 8, 32773)):
        samples = noise(170 + bits, *SIZE, bits=bits)
        photometric = tiffs.BLACK_IS_ZERO if compression in (1, 8) else tiffs.WHITE_IS_ZERO
        stored = samples if photometric else 2**bits - 1 - samples
        data = tiffs.strip(stored, bits, photometric, compression)
        name = f"TIFF of {bits} bits, black is {1 - photometric}, compression {compression}"
        yield Case(16, name, data, pixels=grey(samples, bits))
    samples = noise(180, *SIZE, bits=1)
    pixels = grey(samples, 1)
    swapped = tiffs.stored(samples, 1)
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in swapped)
    tags = tiffs.tags(samples, 1, tiffs.BLACK_IS_ZERO, fill_order=2)
    yield Case(16, "TIFF of 1 bit from the lowest up", tiffs.tiff([(tags, [turned])]), pixels=pixels)
    for compression in ("group3", "group4", "tiff_ccitt"):
        data = written(samples.astype(bool), "TIFF", compression=compression)
        yield Case(16, f"TIFF of 1 bit in {compression}", data, pixels=pixels)
    black_and_white = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    data = bmp(packed_rows(samples, 1), SIZE, 1, palette=black_and_white)
    yield Case(16, "BMP of 1 bit", data, pixels=pixels)


def _palettes() -> Iterator[Case]:
    flags = ("palette",)
    for bits, clear in itertools.product((1, 2, 4, 8), (False, True)):
        colours, samples = noise(190 + bits, 2**bits, 3), noise(200 + bits, *SIZE, bits=bits)
        chunks = pngs.chunk(b"PLTE", colours.tobytes()) + pngs.chunk(b"tRNS", b"\0\x80") * clear
        data = pngs.png(samples, bits, pngs.PALETTE, before=chunks)
        name = f"palette PNG of {bits} bits{' with clear colours' * clear}"
        yield Case(16, name, data, "ok", flags + ("alpha",) * clear, colours[samples])
    for bits in (1, 4, 8):
        colours, samples = noise(210 + bits, 2**bits, 3), noise(220 + bits, *SIZE, bits=bits)
        expected = colours[samples]
        data = bmp(packed_rows(samples, bits), SIZE, bits, palette=colours)
        yield Case(16, f"palette BMP of {bits} bits", data, "ok", flags, expected)
        data = bmp(packed_rows(samples, bits), SIZE, bits, palette=colours, old=True)
        yield Case(16, f"palette BMP of OS/2, {bits} bits", data, "ok", flags, expected)
        table = (colours.T.astype(int) * 257).ravel().tolist()
        for compression in (1, 8):
            data = tiffs.strip(samples, bits, tiffs.PALETTE, compression, colour_map=table)
            yield Case(16, f"palette TIFF of {bits} bits, compression {compression}", data, "ok", flags, expected)
    data = bmp(run_lengths(samples), SIZE, 8, palette=colours, compression=1)
    yield Case(16, "BMP in run lengths", data, "ok", flags, expected)
    for number, options in enumerate(({}, {"interlace": 0}, {"transparency": 5})):
        indices, colours = noise(230 + number, *SIZE), noise(240 + number, 256, 3)
        data = written(indexed(indices, colours), "GIF", **options)
        more = ("alpha",) * ("transparency" in options)
        yield Case(16, f"GIF {options}", data, "ok", flags + more, colours[indices])


def _alpha() -> Iterator[Case]:
    flags = ("alpha",)
    la, rgba = noise(250, *SIZE, 2), noise(251, *SIZE, 4)
    light, colours = grey(la[..., 0]), rgba[..., :3]
    for interlaced in (False, True):
        name = ", interlaced" * interlaced
        data = pngs.png(la, 8, pngs.GREY_ALPHA, interlaced=interlaced)
        yield Case(16, f"PNG of grey and alpha{name}", data, "ok", flags, light)
        data = pngs.png(rgba, 8, pngs.RGB_ALPHA, interlaced=interlaced)
        yield Case(16, f"PNG of RGB and alpha{name}", data, "ok", flags, colours)
    data = pngs.png(la[..., 0], 8, pngs.GREY, before=pngs.chunk(b"tRNS", b"\0\7"))
    yield Case(16, "grey PNG with a clear value", data, "ok", flags, light)
    key = pngs.chunk(b"tRNS", b"\0\7\0\7\0\7")
    yield Case(16, "RGB PNG with a clear colour", pngs.png(colours, 8, pngs.RGB, before=key), "ok", flags, colours)
    data = written(rgba, "WEBP", lossless=True, exact=True)
    yield Case(16, "WebP with alpha", data, "ok", flags, colours)
    for (extra, more), compression in itertools.product(((0, ()), (2, flags)), (1, 8)):
        kind = f"with another channel, {extra}, compression {compression}"
        data = tiffs.strip(la, 8, tiffs.BLACK_IS_ZERO, compression, extra=extra)
        yield Case(16, f"grey TIFF {kind}", data, "ok", more, light)
        data = tiffs.strip(rgba, 8, tiffs.RGB, compression, extra=extra)
        yield Case(16, f"RGB TIFF {kind}", data, "ok", more, colours)
    # Stored multiplied by alpha: what comes out is the colour again, as far as 8 bits kept it.
    alpha = np.maximum(rgba[..., 3:], 128)
    shaded = (colours.astype(int) * alpha // 255).astype(np.uint8)
    for compression in (1, 8):
        data = tiffs.strip(np.dstack([shaded, alpha]), 8, tiffs.RGB, compression, extra=1)
        yield Case(16, f"RGB TIFF multiplied by alpha, {compression}", data, "ok", flags, colours, LOSSY)
        data = tiffs.strip(np.dstack([shaded[..., :1], alpha]), 8, tiffs.BLACK_IS_ZERO, compression, extra=1)
        yield Case(16, f"grey TIFF multiplied by alpha, {compression}", data, "ok", flags, grey(colours[..., 0]), LOSSY)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    bgra = rgba[..., [2, 1, 0, 3]]
    data = bmp(packed_rows(bgra, 8), SIZE, 32, compression=3, masks=masks)
    yield Case(16, "BMP with alpha", data, "ok", flags, colours)


def _other_colours() -> Iterator[Case]:
    """RGB in other ways."""
    rgb = noise(260, *SIZE, 3)
    bgrx = np.dstack([rgb[..., ::-1], noise(261, *SIZE)])
    yield Case(16, "BMP of 32 bits", bmp(packed_rows(bgrx, 8), SIZE, 32), pixels=rgb)
    data = bmp(packed_rows(rgb[..., ::-1], 8), SIZE, 24, top_down=True)
    yield Case(16, "BMP from the top down", data, pixels=rgb)
    for name, bits, masks in (("555", (5, 5, 5), ()), ("565", (5, 6, 5), (0xF800, 0x7E0, 0x1F))):
        samples = [noise(262 + i, *SIZE, bits=depth).astype(int) for i, depth in enumerate(bits)]
        words = (samples[0] << bits[1] | samples[1]) << bits[2] | samples[2]
        pixels = np.dstack([grey(s, depth)[..., 0] for s, depth in zip(samples, bits, strict=True)])
        rows = [row.astype("<u2").tobytes() for row in words]
        data = bmp(rows, SIZE, 16, compression=3 if masks else 0, masks=masks)
        yield Case(16, f"BMP of 16 bits, {name}", data, pixels=pixels, tolerance=1)
    for compression in (1, 5, 8, 32773, 32946):
        data = tiffs.strip(rgb, 8, tiffs.RGB, compression, ">" if compression == 5 else "<")
        yield Case(16, f"RGB TIFF of compression {compression}", data, pixels=rgb)
    for name in ("jpeg", "lzma", "zstd"):
        pixels = slope(32, 48) if name == "jpeg" else rgb
        data = written(pixels, "TIFF", compression=name, **({"quality": 100} if name == "jpeg" else {}))
        yield Case(16, f"RGB TIFF in {name}", data, pixels=pixels, tolerance=LOSSY * (name == "jpeg"))
    differences = np.diff(rgb.astype(int), axis=1, prepend=0) % 256
    data = tiffs.strip(differences, 8, tiffs.RGB, 5, predictor=2)
    yield Case(16, "RGB TIFF of differences", data, pixels=rgb)
    yield Case(16, "RGB TIFF in tiles", tiffs.tiles(rgb, 8, tiffs.RGB), pixels=rgb)
    yield Case(16, "RGB TIFF in strips", tiffs.strips(rgb, 8, tiffs.RGB, 32773), pixels=rgb)
    yield Case(16, "RGB BigTIFF", tiffs.strip(rgb, 8, tiffs.RGB, 8, big=True), pixels=rgb)
    for compression in (1, 8):
        yield Case(16, f"RGB TIFF in planes, {compression}", tiffs.planes(rgb, 8, tiffs.RGB, compression), pixels=rgb)
        ycc = to_ycc(rgb)
        data = tiffs.strip(ycc, 8, tiffs.YCBCR, compression, subsampling=[1, 1])
        yield Case(16, f"YCbCr TIFF, {compression}", data, pixels=from_ycc(ycc), tolerance=LOSSY)
    yield Case(16, "grey GIF", written(rgb[..., 0], "GIF"), "ok", ("palette",), grey(rgb[..., 0]))
