"""Masks by key are those that `read_masks` gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcn_ray.errors import DataError
from fcn_ray.tables.current import read_masks
from fcn_ray.tables.lookup import MaskIndex, StoredLabel
from tests.tables.making import commit_pending, png, start_run, write_images, write_table


def _label(path: str, row: int) -> StoredLabel:
    return StoredLabel(f"{path}#{row}" if path.endswith(".parquet") else path.removesuffix(".png"), "here", b"")


def _take_all(output: str) -> int:
    """Masks that are current, each of which is found, and no other."""
    index, rows = MaskIndex.open(output), read_masks(output).to_table(columns=["path", "row"]).to_pylist()
    assert {index.take(_label(row["path"], row["row"])) for row in rows} == {png(1, "L")}
    assert index.count_left() == 0
    return len(rows)


def test_rows_behind_the_end_of_a_shorter_table_have_no_mask(tmp_path: Path) -> None:
    """A chunk of the old table is before its new end, one has it within, one is behind it; then all are superseded."""
    write_images(tmp_path / "in", "a.png", "b.png")
    write_table(tmp_path / "in" / "t.parquet", 9)
    list(commit_pending(*start_run(tmp_path)))
    assert _take_all(f"{tmp_path}/out") == 2 + 9
    write_table(tmp_path / "in" / "t.parquet", 5)
    run, log = start_run(tmp_path)
    assert _take_all(f"{tmp_path}/out") == 2 + 5, "when it is planned"
    assert _take_all(run.uri) == 2 + 5
    list(commit_pending(run, log))
    assert _take_all(f"{tmp_path}/out") == 2 + 5, "when it is done"
    with pytest.raises(DataError, match=r"here: .* has no mask for 't.parquet#5'"):
        MaskIndex.open(f"{tmp_path}/out").take(_label("t.parquet", 5))
