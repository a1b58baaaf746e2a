"""PNG files written by hand: every bit depth, colour type, filter and interlacing, right or wrong."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types."""

_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Adam7: first row, first column, step of the rows, step of the columns."""


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Length, kind, content and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int, depth: int, colour: int, methods: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    """IHDR; `methods` are those of compression, filtering and interlacing."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, *methods))


def whole(*chunks: bytes) -> bytes:
    """A file of these chunks and IEND."""
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def png(
    samples: np.ndarray,
    depth: int,
    colour: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    filters: Sequence[int] = (0,),
    interlaced: bool = False,
    parts: int = 1,
) -> bytes:
    """Samples (H, W) or (H, W, C) below 2**depth as a PNG.

    Rows take the `filters` in turn; `before` and `after` are chunks around the image data, which is in `parts` chunks.
    """
    data = zlib.compress(scanlines(samples, depth, filters, interlaced), 6)
    cuts = [len(data) * part // parts for part in range(parts + 1)]
    image = b"".join(chunk(b"IDAT", data[first:last]) for first, last in itertools.pairwise(cuts))
    height, width = samples.shape[:2]
    return whole(header(width, height, depth, colour, (0, 0, int(interlaced))), before, image, after)


def scanlines(samples: np.ndarray, depth: int, filters: Sequence[int] = (0,), interlaced: bool = False) -> bytes:
    """What is compressed: for each row its filter and its filtered bytes."""
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in _PASSES] if interlaced else [samples]
    return b"".join(row for part in passes if part.size for row in _filtered(part, depth, filters))


def _filtered(samples: np.ndarray, depth: int, filters: Sequence[int]) -> Iterator[bytes]:
    height, width = samples.shape[:2]
    channels = samples.reshape(height, width, -1).shape[2]
    step = max(1, channels * depth // 8)
    above = None
    if set(filters) == {0}:
        lines = np.pad(packed(samples, depth).astype(np.uint8), [(0, 0), (1, 0)])
        yield lines.tobytes()
        return
    for number, row in enumerate(packed(samples, depth)):
        up = np.zeros_like(row) if above is None else above
        left, corner = (np.concatenate([np.zeros(step, int), line])[: len(row)] for line in (row, up))
        kind = filters[number % len(filters)]
        predicted = (0, left, up, (left + up) // 2, _paeth(left, up, corner))[kind]
        yield bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row


def packed(samples: np.ndarray, depth: int) -> np.ndarray:
    """Rows of samples as rows of bytes, most significant bit first; integers, so that they can be subtracted."""
    rows = samples.reshape(len(samples), -1)
    if depth == 16:
        return np.ascontiguousarray(rows.astype(">u2")).view(np.uint8).astype(int)
    bits = (rows[..., None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1).astype(int)


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    guess = left + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))


def animation(frames: Sequence[np.ndarray], *, hidden_first: bool = False) -> bytes:
    """8-bit RGB frames (H, W, 3) as an APNG; with `hidden_first` the first picture is shown by other viewers only."""
    height, width = frames[0].shape[:2]
    sequence = iter(range(2 * len(frames)))
    parts = [header(width, height, 8, RGB), chunk(b"acTL", struct.pack(">II", len(frames) - hidden_first, 0))]
    for number, frame in enumerate(frames):
        if number or not hidden_first:
            control = struct.pack(">IIIIIHHBB", next(sequence), width, height, 0, 0, 1, 10, 0, 0)
            parts.append(chunk(b"fcTL", control))
        data = zlib.compress(scanlines(frame, 8))
        parts.append(chunk(b"fdAT", struct.pack(">I", next(sequence)) + data) if number else chunk(b"IDAT", data))
    return whole(*parts)
