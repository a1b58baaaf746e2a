import gzip
from pathlib import Path
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.errors import SchemaError, StorageError
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.contents import RowGroup, read_contents
from fcn_ray.tables.sources import Source
from tests.tables.archives import tar, write_tar
from tests.tables.making import write_table


def _source(path: Path) -> Source:
    return Source(path.name, "tar" if path.suffix == ".tar" else "parquet", path.stat().st_size, "1")


def test_row_groups_come_from_the_footer(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", 10, group=4, image=[bytes([row]) * 1000 for row in range(10)])
    groups = list(read_contents(str(path), _source(path), Columns()))
    assert [(group.rows, group.offset) for group in groups] == [(4, 0), (4, 0), (2, 0)]
    assert all(0 < group.size - 1000 * group.rows < 3000 for group in groups), "two images are its statistics"


def test_images_of_a_tar_come_from_its_headers(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", 3)
    groups = list(read_contents(str(path), _source(path), Columns()))
    assert groups == [RowGroup(1, 11, 1024), RowGroup(1, 11, 4096), RowGroup(1, 11, 7168)]


def test_tars_that_are_not_whole_or_have_no_images(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", 3).read_bytes()
    for name, data in {"empty": b"", "cut": whole[:5000], "page": b"<html>" * 99, "gzip": gzip.compress(whole)}.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        with pytest.raises(StorageError, match=f"not a readable tar of {len(data)} bytes"):
            read_contents(str(path), _source(path), Columns())
    (tmp_path / "none.tar").write_bytes(tar([("a.txt", b"x"), ("a.mp4", b"x")]))
    with pytest.raises(SchemaError, match=r"no member is an image, one of \.jpg"):
        read_contents(str(tmp_path / "none.tar"), _source(tmp_path / "none.tar"), Columns())


def test_tables_that_cannot_be_opened(tmp_path: Path) -> None:
    whole = write_table(tmp_path / "whole.parquet", 5).read_bytes()
    damaged = whole[:-108] + bytes(100) + whole[-8:]
    for name, data in {"empty": b"", "cut": whole[:-4], "page": b"<html>" * 9, "footer": damaged}.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        with pytest.raises(StorageError, match=f"not a readable Parquet file of {len(data)} bytes"):
            read_contents(str(path), _source(path), Columns())


def test_a_table_of_more_rows_than_can_be_true_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A footer may say 2**62, and planning would not end; to write one takes more than this test has."""
    path = write_table(tmp_path / "t.parquet", 5)
    monkeypatch.setattr("fcn_ray.tables.contents.MAX_ROWS_PER_BYTE", 0)
    with pytest.raises(StorageError, match="its footer tells of 5 rows, of 5 in 2 row groups"):
        read_contents(str(path), _source(path), Columns())


def test_a_table_without_images_is_refused_by_its_schema(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match="no column holds images, found a: int64"):
        read_contents(str(tmp_path / "t.parquet"), _source(tmp_path / "t.parquet"), Columns())


def test_a_tar_is_left_when_nobody_waits_for_it(tmp_path: Path) -> None:
    """It is a request for each member in a store, and a process ends after its threads."""
    path = write_tar(tmp_path / "t.tar", 3)
    source, closed = _source(path), Event()
    assert len(list(read_contents(str(path), source, Columns(), closed))) == 3
    closed.set()
    with pytest.raises(StorageError, match="nobody waits for it"):
        read_contents(str(path), source, Columns(), closed)
