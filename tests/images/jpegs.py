"""JPEG files that Pillow does not write, arithmetic-coded or lossless for one: by hand, or by changing a byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF0, SOF2, LOSSLESS, ARITHMETIC, DHT, SOS, DQT, APP1, APP14 = 0xC0, 0xC2, 0xC3, 0xC9, 0xC4, 0xDA, 0xDB, 0xE1, 0xEE


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, first byte and end of each segment up to the first scan."""
    position, marker = 2, 0
    while marker != SOS:
        _, marker, length = struct.unpack_from(">BBH", data, position)
        yield marker, position, position + 2 + length
        position += 2 + length


def find(data: bytes, marker: int) -> tuple[int, int]:
    """First byte and end of the first segment of this kind."""
    return next((first, end) for kind, first, end in segments(data) if kind == marker)


def without(data: bytes, marker: int) -> bytes:
    first, end = find(data, marker)
    return data[:first] + data[end:]


def changed(data: bytes, marker: int, offset: int, content: bytes) -> bytes:
    """`content` in the place of bytes of a segment; `offset` counts from its marker."""
    first = find(data, marker)[0] + offset
    return data[:first] + content + data[first + len(content) :]


def flipped_in_scan(data: bytes, count: int, rng: np.random.Generator) -> bytes:
    """`count` bytes of the coded pixels changed by a bit or two, none of them to a marker or from one."""
    scan, end = find(data, SOS)[1] + 4, len(data) - 2
    places = [place for place in range(scan, end) if 0xFF not in data[place - 1 : place + 2]]
    result = bytearray(data)
    for place in rng.choice(places, count, replace=False):
        mask = int(rng.integers(1, 255))
        result[place] ^= mask if result[place] ^ mask != 0xFF else mask ^ 1
    return bytes(result)


def lossless(samples: np.ndarray, bits: int = 8) -> bytes:
    """Grey samples (H, W) as a lossless JPEG: each sample less its left neighbour, by a Huffman code of 5 bits."""
    height, width = samples.shape
    values = samples.astype(int)
    left = np.hstack([np.vstack([[1 << bits - 1], values[:-1, :1]]), values[:, :-1]])
    code = "".join(_difference(int(difference)) for difference in (values - left).ravel())
    code += "1" * (-len(code) % 8)
    raw = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\0")
    table = b"\0" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    frame = struct.pack(">BHHB", bits, height, width, 1) + b"\1\x11\0"
    scan = segment(SOS, b"\1\1\0\1\0\0")
    return SOI + segment(LOSSLESS, frame) + segment(DHT, table) + scan + raw + EOI


def _difference(value: int) -> str:
    size = abs(value).bit_length()
    return f"{size:05b}" + (f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else "")


def arithmetic(planes: Sequence[np.ndarray]) -> bytes:
    """One or three planes of 8 x 8 blocks, a value each (less 128), as an arithmetic-coded JPEG (ITU-T T.81, SOF9).

    The coder starts afresh for every block, which keeps it to the few states below: values are 0, up to 16 from 0, or
    17, 33 or 65 from it.
    """
    rows, columns = planes[0].shape
    count = len(planes)
    frame = struct.pack(">BHHB", 8, rows * 8, columns * 8, count) + b"".join(
        bytes([number + 1, 0x11, 0]) for number in range(count)
    )
    scan = bytes([count]) + b"".join(bytes([number + 1, number << 4 | number]) for number in range(count)) + b"\0\x3f\0"
    blocks = [_coded_blocks([int(plane[at]) for plane in planes]) for at in np.ndindex(rows, columns)]
    body = b"".join(block + bytes([0xFF, 0xD0 + number % 8]) for number, block in enumerate(blocks[:-1])) + blocks[-1]
    tables = segment(DQT, b"\0" + bytes([8] * 64)) + segment(0xDD, b"\0\1")  # a restart after every block
    return SOI + tables + segment(ARITHMETIC, frame) + segment(SOS, scan) + body + EOI


_STATES = {
    0: (0x5A1D, 1, 1, 1),
    1: (0x2586, 14, 2, 0),
    2: (0x1114, 16, 3, 0),
    3: (0x080B, 18, 4, 0),
    4: (0x03D8, 20, 5, 0),
    5: (0x01DA, 23, 6, 0),
    14: (0x5A7F, 15, 15, 1),
}
"""State -> size of the less probable interval, next state after the less and the more probable symbol, whether the two
change places (T.81, table D.3)."""


class _Coder:
    """The coder of T.81, annex D, with a number of any length for a code register."""

    def __init__(self) -> None:
        self.code, self.interval, self.shifts = 0, 0x10000, 0
        self.contexts: dict[object, tuple[int, int]] = {}

    def put(self, context: object, bit: int) -> None:
        state, probable = self.contexts.get(context, (0, 0))
        small, after_less, after_more, swap = _STATES[state]
        self.interval -= small
        less = bit != probable
        if less == (self.interval >= small):  # the upper interval is the smaller one's, or that of what came
            self.code, self.interval = self.code + self.interval, small
        if less:
            self.contexts[context] = (after_less, probable ^ swap)
        elif self.interval < 0x8000:
            self.contexts[context] = (after_more, probable)
        while self.interval < 0x8000:
            self.interval, self.code, self.shifts = self.interval * 2, self.code * 2, self.shifts + 1

    def finish(self) -> bytes:
        last = (self.code + self.interval - 1) >> 15 << 15  # of all codes in the interval, one that ends in zeros
        bits = 16 + self.shifts
        pad = -bits % 8
        raw = (last << pad).to_bytes((bits + pad) // 8, "big").rstrip(b"\0")
        return raw.replace(b"\xff", b"\xff\0")


def _coded_blocks(values: Sequence[int]) -> bytes:
    """One block of each plane, flat: its mean by F.1.4.1, then "no more" (F.1.4.2)."""
    coder = _Coder()
    for plane, value in enumerate(values):
        coder.put((plane, "zero"), int(value != 0))
        if value:
            coder.put((plane, "sign"), int(value < 0))
            rest, place = abs(value) - 1, (plane, "one", value < 0)
            size = rest.bit_length()
            for step in range(size):
                coder.put(place, 1)
                place = (plane, "size", step)
            coder.put(place, 0)
            for bit in range(size - 2, -1, -1):
                coder.put((plane, "bits", size), rest >> bit & 1)
        coder.put((plane, "end"), 1)
    return coder.finish()
