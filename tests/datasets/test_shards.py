from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fcn_ray.datasets import shards
from fcn_ray.datasets.shards import GROUP_ROWS, Sample, write_shards
from fcn_ray.labels import LabelSet
from fcn_ray.tables.schema import labelled_schema

LABELS = LabelSet.from_names(["sky", "road"])


def _write(folder: Path, sizes: list[int], shard_bytes: int) -> list[pq.ParquetFile]:
    samples = [Sample(f"n{index}", f"images/n{index}.jpg", b"x" * size, b"m") for index, size in enumerate(sizes)]
    count = write_shards(folder, "train", iter(samples), labelled_schema(LABELS), shard_bytes)
    names = [f"train-{number:05}-of-{count:05}.parquet" for number in range(count)]
    assert sorted(path.name for path in folder.iterdir()) == names
    files = [pq.ParquetFile(folder / name, page_checksum_verification=True) for name in names]
    rows = [row for file in files for row in file.read().to_pylist()]
    assert rows == [
        {
            "name": sample.name,
            "image": {"bytes": sample.image, "path": sample.path},
            "mask": {"bytes": b"m", "path": f"{sample.name}.png"},
        }
        for sample in samples
    ]
    return files


def _groups(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]


def test_a_file_ends_when_it_is_full_and_its_name_says_of_how_many(tmp_path):
    files = _write(tmp_path / "a", [40, 40, 40, 40, 500, 10], shard_bytes=100)
    assert [_groups(file) for file in files] == [[2, 2], [1], [1]]
    assert [_groups(file) for file in _write(tmp_path / "b", [40, 40, 40], shard_bytes=1)] == [[1], [1], [1]]
    assert _write(tmp_path / "c", [], shard_bytes=100) == []


def test_row_groups_are_small_in_rows_and_in_bytes(tmp_path, monkeypatch):
    (file,) = _write(tmp_path / "a", [1] * (2 * GROUP_ROWS + 3), shard_bytes=10**9)
    assert _groups(file) == [GROUP_ROWS, GROUP_ROWS, 3]
    monkeypatch.setattr(shards, "MAX_GROUP_BYTES", 100)
    (file,) = _write(tmp_path / "b", [60, 38, 60, 120, 5], shard_bytes=10**9)
    assert _groups(file) == [2, 1, 1, 1]


def test_images_are_not_compressed_again_and_pages_have_checksums_and_an_index(tmp_path):
    (file,) = _write(tmp_path / "a", [10_000] * 3, shard_bytes=10**9)
    group = file.metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    assert {column.path_in_schema: column.compression for column in columns} == {
        "name": "ZSTD",
        "image.bytes": "UNCOMPRESSED",
        "image.path": "ZSTD",
        "mask.bytes": "UNCOMPRESSED",
        "mask.path": "ZSTD",
    }
    assert all(column.has_offset_index for column in columns)
    path = tmp_path / "a" / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(b"x" * 100) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_metadata_tell_the_classes_and_which_columns_are_images(tmp_path):
    (file,) = _write(tmp_path / "a", [1], shard_bytes=10)
    metadata = file.schema_arrow.metadata
    assert LabelSet.from_metadata(metadata) == LABELS
    assert json.loads(metadata[b"huggingface"])["info"]["features"] == {
        "name": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "mask": {"_type": "Image"},
    }


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert path.read_bytes().endswith(b"PAR1")
        flushed.append(path.suffix)

    monkeypatch.setattr(os, "fsync", note)
    _write(tmp_path / "a", [5, 5], shard_bytes=1)
    assert flushed == [".unfinished"] * 2
