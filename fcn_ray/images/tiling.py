"""Tiles: windows of a large image that give, piece by piece, the mask of the whole.

Windows begin and end on the grid of the network's strides, or at the image's own padded end: what lies beyond that end
in a whole image is nothing, in a window it must be nothing too. Around its core each has at least `halo` pixels of the
image on every side where the image goes on; the core then is what it is in the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fcn_ray.config import STRIDE
from fcn_ray.images.geometry import Pixels, padded_size


@dataclass(frozen=True, slots=True)
class Tile:
    """One window and its core; each is (first row, first column, end row, end column) in pixels of the image."""

    window: tuple[int, int, int, int]
    """What the network sees; its end may lie beyond the image by what pads it to the grid."""
    core: tuple[int, int, int, int]
    """What is taken of the result; the cores of an image cover each pixel once."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.window[2] - self.window[0], self.window[3] - self.window[1]

    def cut(self, image: Pixels) -> Pixels:
        """The window's part of `image` (H, W, 3): a view, smaller than the window where the image ends in it."""
        top, left, bottom, right = self.window
        return image[top:bottom, left:right]

    def core_in_window(self) -> tuple[int, int, int, int]:
        """The core, counted from the window's first row and column."""
        top, left = self.window[:2]
        return self.core[0] - top, self.core[1] - left, self.core[2] - top, self.core[3] - left


def whole_image(height: int, width: int, grid: int = STRIDE) -> Tile:
    """The one tile of an image that is predicted as it is, padded to multiples of `grid`."""
    return Tile((0, 0, *padded_size(height, width, grid)), (0, 0, height, width))


def plan_tiles(height: int, width: int, halo: int, tile_pixels: int, grid: int = STRIDE) -> list[Tile]:
    """Tiles of an image, all windows of one size and of at most `tile_pixels` pixels, row by row.

    `halo` is a multiple of `grid`. Of all such sizes it is the one that computes the fewest pixels; it depends on the
    arguments alone. Raises ValueError when `tile_pixels` leaves no room for a core.
    """
    tall, wide = padded_size(height, width, grid)
    least = 2 * halo + grid
    sizes = []
    for rows in range(min(least, tall), tall + 1, grid):
        columns = min(wide, tile_pixels // rows // grid * grid)
        if columns >= min(least, wide):
            tiles = _count(tall, rows, halo) * _count(wide, columns, halo)
            sizes.append((tiles * rows * columns, rows, columns))
    if not sizes:
        raise ValueError(
            f"tiles of {tile_pixels} pixels cannot hold {halo} pixels around a core of {grid} on every side: raise "
            f"predict.tile_pixels to {least * least} or more"
        )
    _, rows, columns = min(sizes)
    return [
        Tile((top, left, top + rows, left + columns), (first, start, last, end))
        for top, first, last in _cuts(height, tall, rows, halo)
        for left, start, end in _cuts(width, wide, columns, halo)
    ]


def _count(padded: int, window: int, halo: int) -> int:
    """Windows along one axis: each brings `window - 2 halo` new pixels, the first and the last a halo more."""
    return 1 if window >= padded else -(-(padded - 2 * halo) // (window - 2 * halo))


def _cuts(size: int, padded: int, window: int, halo: int) -> list[tuple[int, int, int]]:
    """(window's start, core's start, core's end) of the windows along one axis."""
    step = window - 2 * halo
    starts = [min(index * step, padded - window) for index in range(_count(padded, window, halo))]
    borders = [0, *(start + halo for start in starts[1:]), size]
    return [(start, first, end) for start, (first, end) in zip(starts, pairwise(borders), strict=True) if first < end]


def paste(mask: Pixels, tile: Tile, found: np.ndarray) -> None:
    """Put the core of `found`, the mask (h, w) of a window, into the `mask` (H, W) of the image."""
    top, left, bottom, right = tile.core_in_window()
    mask[tile.core[0] : tile.core[2], tile.core[1] : tile.core[3]] = found[top:bottom, left:right]
