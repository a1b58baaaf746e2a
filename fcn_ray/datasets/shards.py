"""Labelled images as Parquet files of a moderate size, which training, Hugging Face datasets and others read.

Files are written under other names and get theirs, which holds their number, when the last one is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.tables import schema
from fcn_ray.tables.maskfile import MAX_GROUP_BYTES

GROUP_ROWS = 64
"""Most images in a row group: what a reader must hold at a time, and what training shuffles as one."""

SHARD_BYTES = 500_000_000
"""Bytes of images and masks after which a file ends, by default."""

_ENCODED = [f"{column}.bytes" for column in (schema.IMAGE, schema.MASK)]
_TEXT = [schema.NAME, *(f"{column}.path" for column in (schema.IMAGE, schema.MASK))]


class Sample(NamedTuple):
    """A labelled image: its name, where the image was, the image and the mask, both encoded."""

    name: str
    path: str
    image: bytes
    mask: bytes


def write_shards(folder: Path, split: str, samples: Iterable[Sample], arrow: pa.Schema, shard_bytes: int) -> int:
    """Write `samples` to `folder`, which is made, as SPLIT-00000-of-00003.parquet and so on; return how many files.

    A file ends with the row group that brings it to `shard_bytes` of images and masks.
    """
    folder.mkdir()
    written: list[Path] = []
    groups = _row_groups(samples, min(MAX_GROUP_BYTES, shard_bytes))
    for group in groups:
        written.append(folder / f"{len(written):05}.unfinished")
        with _open(written[-1], arrow) as writer:
            size = _write(writer, group)
            while size < shard_bytes and (following := next(groups, None)) is not None:
                size += _write(writer, following)
    for number, path in enumerate(written):
        path.rename(folder / f"{split}-{number:05}-of-{len(written):05}.parquet")
    return len(written)


def _row_groups(samples: Iterable[Sample], most_bytes: int) -> Iterator[list[Sample]]:
    """The samples in groups of at most GROUP_ROWS, and of `most_bytes` unless one alone is larger."""
    group: list[Sample] = []
    size = 0
    for sample in samples:
        if group and (len(group) == GROUP_ROWS or size + _bytes(sample) > most_bytes):
            yield group
            group, size = [], 0
        group.append(sample)
        size += _bytes(sample)
    if group:
        yield group


def _bytes(sample: Sample) -> int:
    return len(sample.image) + len(sample.mask)


@contextmanager
def _open(path: Path, arrow: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file that is on the disk, not only on its way there, when the block ends."""
    with open(path, "xb") as file:
        with pq.ParquetWriter(
            file,
            arrow,
            compression=dict.fromkeys(_ENCODED, "none") | dict.fromkeys(_TEXT, "zstd"),  # JPEG and PNG are compressed
            use_dictionary=_TEXT,
            write_statistics=_TEXT,
            write_page_checksum=True,
            write_page_index=True,
        ) as writer:
            yield writer
        file.flush()
        os.fsync(file.fileno())


def _write(writer: pq.ParquetWriter, group: list[Sample]) -> int:
    """Write one row group; return the bytes of its images and masks."""
    rows = [
        {
            schema.NAME: sample.name,
            schema.IMAGE: {"bytes": sample.image, "path": sample.path},
            schema.MASK: {"bytes": sample.mask, "path": f"{sample.name}.png"},
        }
        for sample in group
    ]
    writer.write_table(pa.Table.from_pylist(rows, writer.schema), row_group_size=len(group))
    return sum(map(_bytes, group))
