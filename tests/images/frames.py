"""Rows 18 to 20 of the catalogue: several frames or pages, of which the first counts."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.images import pngs, tiffs
from tests.images.case import LOSSY, Case, blocks, grey, indexed, noise, written

SIZE = (24, 17)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _frames()
    yield from _pages()


def _frames() -> Iterator[Case]:
    flags = ("multi_frame",)
    for count in (2, 3):
        indices, colours = noise(181, count, *SIZE), noise(182 + count, 256, 3)
        images = [indexed(frame, colours) for frame in indices]
        data = written(images[0], "GIF", save_all=True, append_images=images[1:])
        yield Case(18, f"GIF of {count} frames", data, "ok", ("palette", *flags), colours[indices[0]])
        yield Case(
            18, f"GIF of {count} frames, cut in its last", data[:-200], "ok", ("palette", *flags), colours[indices[0]]
        )
        frames = noise(183 + count, count, *SIZE, 3)
        yield Case(18, f"APNG of {count} frames", pngs.animation(frames), "ok", flags, frames[0])
        data = pngs.animation(frames, hidden_first=True)
        yield Case(18, f"APNG of {count - 1} frames behind a picture", data, "ok", flags, frames[0])
        for name, shown in (("RGB", frames), ("alpha", noise(186 + count, count, *SIZE, 4))):
            images = [Image.fromarray(frame) for frame in shown]
            images[0].putalpha(255) if name == "alpha" else None
            data = written(images[0], "WEBP", save_all=True, append_images=images[1:], lossless=True, duration=99)
            more = ("alpha",) * (name == "alpha")
            yield Case(19, f"WebP of {count} frames, {name}", data, "ok", (*more, *flags), shown[0][..., :3])
        one = [np.full((*SIZE, 3), (30 * i, 128, 99), np.uint8) for i in range(count)]
        images = [Image.fromarray(frame) for frame in one]
        data = written(images[0], "WEBP", save_all=True, append_images=images[1:], quality=95)
        yield Case(19, f"lossy WebP of {count} frames", data, "ok", flags, one[0], LOSSY)
    for number, value in enumerate((0, 90, 255)):
        flat = np.full((*SIZE, 3), (value, 40 * number, 200), np.uint8)
        data = written(flat, "WEBP", quality=95)
        yield Case(19, f"lossy WebP of one frame, {value}", data, pixels=flat, tolerance=LOSSY)
    flat = blocks(184, 2, 3)
    images = [Image.fromarray(frame) for frame in (flat, flat[::-1].copy())]
    data = written(images[0], "MPO", save_all=True, append_images=images[1:], quality=95, subsampling=0)
    yield Case(18, "JPEG of two pictures", data, "ok", flags, flat, LOSSY)


def _pages() -> Iterator[Case]:
    flags = ("multi_frame",)
    first, second = noise(200, *SIZE, 3), noise(201, 9, 8, 3)

    def page(samples: np.ndarray, compression: int = 1, **more: int) -> tuple[tiffs.Tags, list[bytes]]:
        data = tiffs.COMPRESSORS.get(compression, bytes)(samples.tobytes())
        return tiffs.tags(samples, 8, tiffs.RGB, compression, **more), [data]

    pages = {
        "alike": [page(first), page(first[::-1].copy())],
        "of two sizes": [page(first), page(second)],
        "packed": [page(first, 8), page(second, 5), page(second, 8)],
        "and one that nobody reads": [page(first), page(second, 34_712)],
        "and one of 10^10 pixels": [page(first, 8), ({**page(second)[0], 256: (4, [10**5]), 257: (4, [10**5])}, [b""])],
    }
    for name, content in pages.items():
        for order, big in (("<", False), (">", False), ("<", True)):
            kind = f"{'Big' * big}TIFF of pages {name}, {order}"
            yield Case(20, kind, tiffs.tiff(content, order, big), "ok", flags, first)
    yield Case(20, "TIFF of pages in a circle", tiffs.tiff(pages["alike"], loop=True), "ok", flags, first)
    yield Case(20, "TIFF of one page in a circle", tiffs.tiff([page(first)], loop=True), pixels=first)
    data = bytearray(tiffs.tiff([page(first)]))
    data[-4:] = struct.pack("<I", 10**6)
    yield Case(20, "TIFF of a page and one that is not there", bytes(data), "ok", flags, first)
    images = [Image.fromarray(noise(202 + i, *SIZE, bits=1).astype(bool)) for i in range(2)]
    data = written(images[0], "TIFF", save_all=True, append_images=images[1:], compression="group4")
    yield Case(20, "fax of two pages", data, "ok", flags, grey(np.asarray(images[0]), 1))
