"""Sizes and places of pixels: padding to the grid, batches of equal size, resizing.

Images and labels are resized by different functions on purpose: to blend two class ids gives a third class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcn_ray.config import STRIDE

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) RGB of an image, (H, W) class ids of a label or mask."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the source; fractions are allowed."""


def padded_size(height: int, width: int, stride: int = STRIDE) -> tuple[int, int]:
    """Smallest height and width that hold the image and are multiples of `stride`."""
    if height < 1 or width < 1:
        raise ValueError(f"an image has at least one pixel, found {height} x {width}")
    return -(-height // stride) * stride, -(-width // stride) * stride


def pad_batch(images: Sequence[Pixels], height: int, width: int) -> Pixels:
    """Images (H, W, 3) uint8 of any sizes -> one array (N, height, width, 3) uint8, zeros at the bottom and right."""
    batch = np.zeros((len(images), height, width, 3), np.uint8)
    for place, image in zip(batch, images, strict=True):
        if image.shape[0] > height or image.shape[1] > width:
            raise ValueError(f"an image of {image.shape[:2]} does not fit a batch of {(height, width)}")
        place[: image.shape[0], : image.shape[1]] = image
    return batch


def group_by_size(sizes: Sequence[tuple[int, int]], batch_pixels: int) -> list[list[int]]:
    """Indices of `sizes` (height, width), grouped into batches of one size.

    A batch holds at most `batch_pixels` pixels, but at least one image. Batches come in the order of their first image,
    and indices rise within a batch: the grouping depends on the sizes alone.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    batches = []
    for (height, width), indices in by_size.items():
        count = max(1, batch_pixels // (height * width))
        batches += [indices[start : start + count] for start in range(0, len(indices), count)]
    return sorted(batches)


def resize_image(image: Pixels, height: int, width: int, box: Box | None = None) -> Pixels:
    """(H, W, 3) uint8 -> (height, width, 3) uint8, bilinear with antialiasing; of the source `box` alone if given."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box))


def resize_label(label: Pixels, height: int, width: int, box: Box | None = None) -> Pixels:
    """(H, W) uint8 ids -> (height, width) uint8 ids, nearest; of the source `box` alone if given."""
    return np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST, box))
