"""Data sets of drawn streets: a labelled Parquet file to train on, and a mixed collection to segment.

The scene with a given seed and index is always the same, whatever else is written.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image

from fcn_ray.datasets.street import LABELS, draw_scene, random_size
from fcn_ray.images.augmentation import sample_rng
from fcn_ray.images.codec import encode_image, encode_mask
from fcn_ray.images.geometry import Pixels
from fcn_ray.tables.schema import IMAGE, MASK, NAME, labelled_schema

__all__ = ["LABELS", "Collection", "draw_scene", "scenes", "write_collection", "write_scenes_parquet"]

_ROTATED_RIGHT = 6
"""EXIF orientation of a picture taken with the camera turned to its left."""

Scene = tuple[Pixels, Pixels]


@dataclass(frozen=True, slots=True)
class Collection:
    """What `write_collection` wrote: two folders of the same layout, and what is to be expected of the images.

    `bad` maps the path of each image that cannot be decoded, relative to `images`, to its status.
    """

    images: Path
    labels: Path
    count: int
    bad: dict[str, str]


def scenes(count: int, seed: int) -> Iterator[Scene]:
    """`count` scenes of mixed sizes: image (H, W, 3) uint8, label (H, W) uint8."""
    for index in range(count):
        rng = sample_rng(seed, 0, str(index))
        yield draw_scene(rng, *random_size(rng))


def write_scenes_parquet(path: str | Path, count: int, seed: int, rows_per_group: int = 32) -> None:
    """Write scenes to one Parquet file with the columns name, image (JPEG) and mask (PNG of ids).

    Both are image structs as in HF datasets; the schema metadata holds LABELS.
    """
    _write_rows(Path(path), scenes(count, seed), (IMAGE, MASK), rows_per_group)


def write_collection(folder: str | Path, count: int, seed: int) -> Collection:
    """Write `count` good images and three bad ones to `folder`/images, the labels of the good ones to `folder`/labels.

    Half are rows of images/streets.parquet, the others files in images/photos: JPEG and PNG, one of them CMYK and one
    turned by its EXIF orientation. The bad ones are a JPEG cut off, a web page called .jpg and an empty file.
    """
    if count < 4:
        raise ValueError(f"a collection needs at least 4 images, found {count}: two odd ones, a JPEG and some rows")
    images, labels = Path(folder) / "images", Path(folder) / "labels"
    drawn = list(scenes(count, seed))
    rows, photos = drawn[: count // 2], drawn[count // 2 :]
    for root, column in ((images, IMAGE), (labels, MASK)):
        (root / "photos").mkdir(parents=True, exist_ok=True)
        _write_rows(root / "streets.parquet", iter(rows), (column,), rows_per_group=max(1, len(rows) // 3))
    for index, (image, label) in enumerate(photos):
        name, data = _photo(index, image)
        (images / "photos" / name).write_bytes(data)
        (labels / "photos" / name).with_suffix(".png").write_bytes(encode_mask(label))
    bad = _write_bad_images(images, encode_image(drawn[0][0]))
    return Collection(images, labels, count + len(bad), bad)


def _photo(index: int, image: Pixels) -> tuple[str, bytes]:
    """File name and content of an image in one of the forms that photos come in."""
    if index == 0:
        return "cmyk.jpg", _jpeg(Image.fromarray(image).convert("CMYK"))
    if index == 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = _ROTATED_RIGHT
        return "rotated.jpg", _jpeg(Image.fromarray(np.ascontiguousarray(np.rot90(image))), exif)
    if index % 3 == 0:
        return f"street-{index:04d}.png", encode_image(image, "PNG")
    return f"street-{index:04d}.jpg", encode_image(image)


def _write_bad_images(images: Path, jpeg: bytes) -> dict[str, str]:
    page = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"
    bad = {
        "photos/bad-cut.jpg": ("truncated", jpeg[: len(jpeg) // 2]),
        "photos/bad-page.jpg": ("not_image", page),
        "photos/bad-zero.jpg": ("empty", b""),
    }
    for name, (_, data) in bad.items():
        (images / name).write_bytes(data)
    return {name: status for name, (status, _) in bad.items()}


def _jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, exif=exif or Image.Exif())
    return buffer.getvalue()


def _write_rows(path: Path, drawn: Iterator[Scene], columns: tuple[str, ...], rows_per_group: int) -> None:
    """Write name and `columns` of the scenes, a row group at a time."""
    group: list[dict[str, object]] = []
    with pq.ParquetWriter(path, labelled_schema(LABELS, columns)) as writer:
        for index, scene in enumerate(drawn):
            name = f"street-{index:04d}"
            group.append({NAME: name} | {column: _encoded(column, name, scene) for column in columns})
            if len(group) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(group, writer.schema))
                group.clear()
        if group:
            writer.write_table(pa.Table.from_pylist(group, writer.schema))


def _encoded(column: str, name: str, scene: Scene) -> dict[str, object]:
    image, label = scene
    if column == IMAGE:
        return {"bytes": encode_image(image), "path": f"{name}.jpg"}
    return {"bytes": encode_mask(label), "path": f"{name}.png"}
