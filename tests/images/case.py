"""One input of the catalogue, and what it must become."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000
"""The limit under which the catalogue is decoded: the default of training."""

LOSSY = 2
"""Largest difference to the source that a lossy format may leave, of 255."""


@dataclass(frozen=True, eq=False)
class Case:
    """`data` of catalogue row `row`; `pixels` (H, W, 3) are arithmetic on what was stored, within `tolerance`.

    `size` stands for pixels that nobody can foretell; `suffix` is that of the file's name, which must not matter.
    """

    row: int
    name: str
    data: bytes | None
    status: str = "ok"
    flags: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    tolerance: int = 0
    size: tuple[int, int] | None = None
    suffix: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width when it decodes."""
        size = self.size if self.pixels is None else self.pixels.shape[:2]
        assert size is not None, f"{self} is ok, but nobody says what comes out"
        return size[0], size[1]

    def __str__(self) -> str:
        return f"{self.row} {self.name}"


def written(pixels: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    """What Pillow writes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(seed: int, *shape: int, bits: int = 8) -> np.ndarray:
    """Samples of all values below 2**bits, as uint8 where they fit."""
    values = np.random.default_rng(seed).integers(0, 2**bits, shape)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def indexed(indices: np.ndarray, colours: np.ndarray) -> Image.Image:
    """An image with a palette."""
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    return image


def blocks(seed: int, rows: int, columns: int, channels: int = 3, side: int = 8) -> np.ndarray:
    """Flat squares of any colour, which JPEG keeps when every channel has its own pixels."""
    return noise(seed, rows, columns, channels).repeat(side, 0).repeat(side, 1)


def slope(height: int, width: int) -> np.ndarray:
    """Smooth colours, which JPEG keeps however few pixels its colours have."""
    y, x = np.indices((height, width))
    return np.stack([y + x + 20, y + x + 60, x + 90], axis=2).astype(np.uint8)


def grey(samples: np.ndarray, bits: int = 8) -> np.ndarray:
    """(H, W) samples as RGB of 8 bits: the nearest of 255 v / (2**bits - 1)."""
    values = np.floor(samples.astype(float) * 255 / (2**bits - 1) + 0.5).astype(np.uint8)
    return np.stack([values] * 3, axis=2)


def from_cmyk(ink: np.ndarray) -> np.ndarray:
    """(H, W, 4) ink of 0..255 on white paper as RGB."""
    light = 255 - ink.astype(float)
    return np.floor(light[..., :3] * light[..., 3:] / 255 + 0.5).astype(np.uint8)


def from_ycc(samples: np.ndarray) -> np.ndarray:
    """(H, W, 3) YCbCr of JFIF as RGB."""
    y, cb, cr = np.moveaxis(samples.astype(float), 2, 0)
    red, green, blue = (
        y + 1.402 * (cr - 128),
        y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
        y + 1.772 * (cb - 128),
    )
    return np.clip(np.rint(np.stack([red, green, blue], 2)), 0, 255).astype(np.uint8)


def to_ycc(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB as YCbCr of JFIF."""
    red, green, blue = np.moveaxis(rgb.astype(float), 2, 0)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.clip(np.rint(np.stack([y, 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402], 2)), 0, 255).astype(
        np.uint8
    )
