"""Tiny data sets in the layouts of the public ones, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from fcn_ray.images.codec import encode_image

HEIGHT, WIDTH = 20, 30


def write(path: Path, data: bytes | str) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_image(path: Path, *, seed: int = 0, height: int = HEIGHT, width: int = WIDTH, turned: bool = False) -> Path:
    """Noise, as what the name ends like; `turned`: stored on its side, with the EXIF orientation that mends it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    if not turned:
        return write(path, encode_image(pixels, kind))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, kind, exif=exif)
    return path


def label(*ids: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Vertical stripes of ids, (height, width) uint8."""
    return np.array(ids, np.uint8)[np.arange(width) * len(ids) // width][None].repeat(height, axis=0)


def write_label(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> Path:
    """Ids (H, W) or colours (H, W, 3) as PNG; ids as palette indices when there is a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image = image.convert("P")
        image.putpalette(palette)
        image.frombytes(pixels.tobytes())  # `convert` maps greys to the nearest colours
    image.save(path)
    return path


def write_folders(root: Path, count: int = 4, classes: str = "sky\nroad\ncar\n") -> Path:
    """The layout `folders`: images/a0.jpg... and masks/a0.png... with the ids 0, 1, 2 and 255."""
    write(root / "classes.txt", classes)
    for index in range(count):
        write_image(root / "images" / f"a{index}.jpg", seed=index)
        write_label(root / "masks" / f"a{index}.png", label(0, 1, 2, 255))
    return root
