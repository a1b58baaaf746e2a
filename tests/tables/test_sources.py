from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.errors import ConfigError, SchemaError, StorageError
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import locate_sources
from fcn_ray.tables.sources import IMAGE_SUFFIXES, Listing, Source, list_inputs, read_row_groups
from tests.tables.making import write_images, write_table


def test_a_folder_is_listed_by_path_and_nothing_is_ignored_in_silence(tmp_path: Path) -> None:
    write_images(tmp_path, "b.JPG", "a/z.png", "a.png", "_DSC1.tiff")
    write_table(tmp_path / "a" / "t.parquet", 2)
    write_table(tmp_path / "_metadata.parquet", 2)
    for name in ("notes.txt", "more.TXT", "README", ".DS_Store", "x.parquet.tmp"):
        (tmp_path / name).write_bytes(b"x")
    listing = Listing()
    listed = list(list_inputs(str(tmp_path), listing))
    assert [(source.path, source.kind) for source in listed] == [
        ("_DSC1.tiff", "image"),
        ("a.png", "image"),
        ("a/t.parquet", "parquet"),
        ("a/z.png", "image"),
        ("b.JPG", "image"),
    ]
    assert listing.skipped == {".txt": 2, "(no suffix)": 1, ".tmp": 1, "(hidden)": 1, ".parquet": 1}


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".WebP"])
def test_a_single_image(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path, f"one{suffix}", "other.png")
    (source,) = list_inputs(f"{tmp_path}/one{suffix}")
    assert (source.path, source.kind) == (f"one{suffix}", "image")
    assert locate_sources(f"{tmp_path}/one{suffix}")(source.path) == f"{tmp_path}/one{suffix}"
    assert locate_sources(str(tmp_path))(source.path) == f"{tmp_path}/one{suffix}"


def test_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"nowhere does not exist: check the path"):
        next(list_inputs(f"{tmp_path}/nowhere"))
    with pytest.raises(ConfigError, match=r"notes.txt must be a folder, a .parquet file or an image, one of .jpg"):
        next(list_inputs(f"{tmp_path}/notes.txt"))
    assert list(list_inputs(str(tmp_path))) == []


def _source(path: Path) -> Source:
    return Source(path.name, "parquet", path.stat().st_size, "1")


def test_row_groups_come_from_the_footer(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", 10, group=4)
    assert read_row_groups(str(path), _source(path), Columns()) == [4, 4, 2]


def test_tables_that_cannot_be_opened(tmp_path: Path) -> None:
    whole = write_table(tmp_path / "whole.parquet", 5).read_bytes()
    damaged = whole[:-108] + bytes(100) + whole[-8:]
    for name, data in {"empty": b"", "cut": whole[:-4], "page": b"<html>" * 9, "footer": damaged}.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        with pytest.raises(StorageError, match=f"not a readable Parquet file of {len(data)} bytes"):
            read_row_groups(str(path), _source(path), Columns())


def test_a_table_of_more_rows_than_can_be_true_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A footer may say 2**62, and planning would not end; to write one takes more than this test has."""
    path = write_table(tmp_path / "t.parquet", 5)
    monkeypatch.setattr("fcn_ray.tables.sources.MAX_ROWS_PER_BYTE", 0)
    with pytest.raises(StorageError, match="its footer tells of 5 rows, of 5 in 2 row groups"):
        read_row_groups(str(path), _source(path), Columns())


def test_a_table_without_images_is_refused_by_its_schema(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="no column holds images, found a: int64"):
        read_row_groups(str(tmp_path / "t.parquet"), _source(tmp_path / "t.parquet"), Columns())


def test_the_listing_names_some_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_ray.tables.sources.MAX_NAMED", 2)
    listing = Listing()
    for number in range(5):
        listing.quarantine(f"{number}.parquet", SchemaError("odd") if number else StorageError("cut"))
    assert listing.n_quarantined == 5
    assert [(table.path, table.schema) for table in listing.quarantined] == [("0.parquet", False), ("1.parquet", True)]
