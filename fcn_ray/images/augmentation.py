"""Random changes to a training image and its label: scale, crop, flip, colour.

All randomness of an image comes from (seed, epoch, image id), so that neither the number of workers, nor the order, nor
a resumed job changes what the network sees.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from fcn_ray.config import AugmentConfig
from fcn_ray.images.geometry import Pixels, resize_image, resize_label

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G, B in brightness (ITU-R BT.601, as in Pillow)."""

MID_GREY = 127.5
"""Contrast turns about this value."""


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Generator for one image (`key` is its id) in one epoch; depends on nothing else."""
    text = f"{seed}\n{epoch}\n{key}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()))


def augment(
    image: Pixels, label: Pixels, config: AugmentConfig, rng: np.random.Generator, ignore_id: int
) -> tuple[Pixels, Pixels]:
    """Image (H, W, 3) and label (H, W), both uint8 -> crops (*config.crop, 3) and (*config.crop), changed alike.

    Only the source box that the crop shows is resized. What lies outside the image has the colour `config.fill`, which
    must be one here, and is `ignore_id` in the label.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"image {image.shape[:2]} and label {label.shape} must have the same size")
    if config.fill == "mean":
        raise ValueError("augment.fill must be a colour here: what the mean is, only the preprocessing says")
    factor = rng.uniform(*config.scale)
    top, bottom, from_y, to_y = _window(image.shape[0], factor, config.crop[0], rng)
    left, right, from_x, to_x = _window(image.shape[1], factor, config.crop[1], rng)
    box = (from_x, from_y, to_x, to_y)

    crop = np.full((*config.crop, 3), config.fill, np.uint8)
    ids = np.full(config.crop, ignore_id, np.uint8)
    seen = resize_image(image, bottom - top, right - left, box)
    crop[top:bottom, left:right] = change_colour(seen, *rng.uniform(1 - config.colour, 1 + config.colour, size=3))
    ids[top:bottom, left:right] = resize_label(label, bottom - top, right - left, box)
    if config.flip and rng.random() < 0.5:
        return np.ascontiguousarray(crop[:, ::-1]), np.ascontiguousarray(ids[:, ::-1])
    return crop, ids


def change_colour(image: Pixels, brightness: float, contrast: float, saturation: float) -> Pixels:
    """(H, W, 3) uint8 with each property times its factor; 1, 1, 1 changes nothing. Out of range is clipped."""
    mix = saturation * np.eye(3) + (1 - saturation) * LUMA
    offset = brightness * (1 - contrast) * MID_GREY
    matrix = np.column_stack([brightness * contrast * mix, np.full(3, offset)])
    return np.asarray(Image.fromarray(image).convert("RGB", tuple(matrix.ravel().tolist())))


def _window(size: int, factor: float, crop: int, rng: np.random.Generator) -> tuple[int, int, float, float]:
    """Along one axis: the pixels (start, end) of the crop that show the image, and the part of the source they show.

    A scaled image larger than the crop is cut at a random place, a smaller one is put at a random place.
    """
    scaled = max(1, round(size * factor))
    offset = int(rng.integers(min(0, scaled - crop), max(0, scaled - crop) + 1))
    start, end = max(0, -offset), min(crop, scaled - offset)
    return start, end, (start + offset) * size / scaled, (end + offset) * size / scaled
