"""Masks of two contenders, pixel by pixel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def read_masks(out: Path) -> dict[str, bytes]:
    """PNG by name of the image, wherever a contender has left them; an image that comes twice counts once."""
    masks = {path.stem.partition("-")[2]: path.read_bytes() for path in out.glob("*.png")}
    for path in out.rglob("*.parquet"):
        if pq.read_schema(path).names.count("mask") and path.parent.name != "plans":
            for row in pq.ParquetFile(path).read(["name", "mask"]).to_pylist():
                mask = row["mask"]
                masks[row["name"]] = mask["bytes"] if isinstance(mask, dict) else mask
    return masks


def equal_pixels(found: Path, expected: Path) -> float:
    """Share of equal pixels over all images; an image that only one of them has, or of another size, has none."""
    ours, theirs = read_masks(expected), read_masks(found)
    equal = total = 0
    for name in ours.keys() | theirs.keys():
        a, b = (np.asarray(Image.open(io.BytesIO(side[name]))) if name in side else None for side in (ours, theirs))
        total += a.size if a is not None else b.size if b is not None else 0
        if a is not None and b is not None and a.shape == b.shape:
            equal += int((a == b).sum())
    return equal / total
