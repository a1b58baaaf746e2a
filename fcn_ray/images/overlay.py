"""Class ids in colour over the picture they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcn_ray.images.geometry import Pixels
from fcn_ray.labels import Colour


def overlay(image: Pixels, ids: Pixels, palette: Sequence[Colour], ignore_id: int, alpha: float = 0.55) -> Pixels:
    """Image (H, W, 3) uint8 with each pixel's class colour mixed in, `alpha` parts of it, as (H, W, 3) uint8.

    Pixels of `ignore_id`, or of an id without a colour, stay as they are.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"image {image.shape[:2]} and ids {ids.shape} must have the same size")
    colours, share = np.zeros((256, 3), np.float32), np.zeros((256, 1), np.float32)
    colours[: len(palette)], share[: len(palette)] = palette, alpha
    share[ignore_id] = 0
    mixed = image * (1 - share[ids]) + colours[ids] * share[ids]
    return np.rint(mixed).astype(np.uint8)
