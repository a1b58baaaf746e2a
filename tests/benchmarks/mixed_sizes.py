"""Images of forty sizes, made from those of one size.

python -m tests.benchmarks.mixed_sizes IMAGES OUT

As many rows in as many Parquet files, row groups of 64; each image is cut and resized to one of 40 sizes between
200x150 and 640x480, drawn with a seed, and is a JPEG again.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

SIZES, SMALLEST, LARGEST = 40, (200, 150), (640, 480)
"""Widths and heights."""

ROW_GROUP, QUALITY = 64, 95


def write_mixed(images: Path, out: Path, seed: int = 0) -> None:
    """Files of the same names in `out`, with unique names of images."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(SMALLEST, np.add(LARGEST, 1), (SIZES, 2))
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(images.glob("*.parquet")):
        rows = pq.read_table(path, columns=["image", "name"])
        drawn = rng.integers(0, SIZES, rows.num_rows)
        resized = [_resize(data.as_py(), *sizes[k]) for data, k in zip(rows["image"], drawn, strict=True)]
        names = [f"{path.stem}-{row:04}" for row in range(rows.num_rows)]
        table = pa.table({"image": pa.array(resized, pa.binary()), "name": names})
        pq.write_table(table, out / path.name, row_group_size=ROW_GROUP, compression="none")


def _resize(data: bytes, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    image = ImageOps.fit(Image.open(io.BytesIO(data)).convert("RGB"), (int(width), int(height)))
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def padded_megapixels(images: Path, grid: int) -> float:
    """Mean over all images of their pixels, with sizes rounded up to `grid`, in millions."""
    pixels = []
    for path in sorted(images.glob("*.parquet")):
        for data in pq.read_table(path, columns=["image"])["image"]:
            width, height = Image.open(io.BytesIO(data.as_py())).size
            pixels.append((-(-width // grid) * grid) * (-(-height // grid) * grid))
    return float(np.mean(pixels)) / 1e6


if __name__ == "__main__":
    write_mixed(Path(sys.argv[1]), Path(sys.argv[2]))
