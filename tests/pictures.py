"""Small labelled pictures for tests: coloured rectangles whose colour tells their class, as Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.images.codec import encode_image, encode_mask
from fcn_ray.labels import METADATA_KEY, LabelSet

LABELS = LabelSet(("sky", "road", "car"), ((70, 130, 180), (128, 64, 128), (220, 20, 60)))


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and label (H, W): sky over road, a car on it, a strip of void."""
    label = np.zeros((height, width), np.uint8)
    label[height // 2 :] = 1
    top, left = rng.integers(height // 2, height - height // 4), rng.integers(0, max(1, width - width // 3))
    label[top : top + height // 4, left : left + width // 3] = 2
    image = np.array(LABELS.palette, np.uint8)[label]
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    label[:2] = LABELS.ignore_id
    return image, label


def write_parquet(
    path: Path, count: int, *, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((48, 64),), group: int = 4
) -> Path:
    """`count` pictures with columns image, mask (bytes) and name, in row groups of `group`."""
    rng = np.random.default_rng(seed)
    pairs = [draw(rng, *sizes[i % len(sizes)]) for i in range(count)]
    table = pa.table(
        {
            "image": [encode_image(image, "PNG") for image, _ in pairs],
            "mask": [encode_mask(label) for _, label in pairs],
            "name": [f"picture-{i}" for i in range(count)],
        }
    ).replace_schema_metadata({METADATA_KEY: LABELS.to_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def write_folder(folder: Path, count: int, *, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    """`count` PNG files, every third of them in a folder below."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        path = folder / ("deep" if i % 3 == 0 else ".") / f"picture-{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(draw(rng, *size)[0], "PNG"))
    return folder
