from pathlib import Path

import pytest

from fcn_ray.errors import ConfigError, SchemaError, StorageError
from fcn_ray.tables.inputs import locate_sources, understand_input
from fcn_ray.tables.sources import IMAGE_SUFFIXES, Listing, list_inputs
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
    assert locate_sources(understand_input(f"{tmp_path}/one{suffix}"))(source.path) == f"{tmp_path}/one{suffix}"
    assert locate_sources(understand_input(str(tmp_path)))(source.path) == f"{tmp_path}/one{suffix}"


def test_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"nowhere does not exist: check the path"):
        next(list_inputs(f"{tmp_path}/nowhere"))
    with pytest.raises(ConfigError, match=r"notes.txt must be a folder, a .parquet or .tar file .*, one of .jpg"):
        next(list_inputs(f"{tmp_path}/notes.txt"))
    assert list(list_inputs(str(tmp_path))) == []


def test_the_listing_names_some_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_ray.tables.sources.MAX_NAMED", 2)
    listing = Listing()
    for number in range(5):
        listing.quarantine(f"{number}.parquet", SchemaError("odd") if number else StorageError("cut"))
    assert listing.n_quarantined == 5
    assert [(table.path, table.schema) for table in listing.quarantined] == [("0.parquet", False), ("1.parquet", True)]
