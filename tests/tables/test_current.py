"""Which rows of a run count, and the dataset of them; rows are told apart by a height that each plan has of its own."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fcn_ray
from fcn_ray import storage
from fcn_ray.errors import ConfigError, SchemaError
from fcn_ray.labels import LabelSet
from fcn_ray.tables import current, planfile, superseded
from fcn_ray.tables.audit import audit
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.current import read_masks
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import pending_chunks, read_log
from fcn_ray.tables.planfile import Place
from fcn_ray.tables.runs import open_run
from fcn_ray.tables.superseded import Superseded, find_superseded
from tests.s3 import Shim
from tests.tables.archives import write_tar
from tests.tables.making import (
    IDENTITY,
    LABELS,
    commit_pending,
    finished_run,
    png,
    result_rows,
    start_run,
    write_images,
    write_table,
)

Key = tuple[str, int]


def _plans(dataset: ds.Dataset) -> dict[Key, int]:
    """Plan of the one row of each (path, row)."""
    table = dataset.to_table(columns=["path", "row", "plan"])
    keys = list(zip(table["path"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, table["plan"].to_pylist(), strict=True))


def _table_keys(name: str, rows: Iterable[int], plan: int) -> dict[Key, int]:
    return {(name, row): plan for row in rows}


# ---------------------------------------------------------------------------------------------------------- no versions


def test_a_run_in_which_nothing_changed_is_a_dataset_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superseded.planfile, "read_places", lambda *_: pytest.fail("one plan has no versions"))
    write_images(tmp_path / "in", *(f"{i}.png" for i in range(5)))
    run = finished_run(tmp_path)
    dataset = fcn_ray.read_masks(f"{tmp_path}/out")
    assert isinstance(dataset, ds.FileSystemDataset)
    assert sorted(dataset.files) == sorted(map(str, Path(run.uri, "masks").iterdir()))
    assert len(list(dataset.get_fragments())) == 2
    expected = pa.concat_tables([pq.read_table(path) for path in dataset.files])
    assert dataset.to_table().equals(expected)
    assert dataset.to_table(columns=["path"], filter=ds.field("path") > "2.png")["path"].to_pylist() == [
        "3.png",
        "4.png",
    ]
    assert pickle.loads(pickle.dumps(dataset)).count_rows() == 5
    assert LabelSet.from_metadata(dataset.schema.metadata) == LABELS
    assert read_masks(run.uri).files == dataset.files


def test_what_is_done_of_a_run_can_be_read_and_nothing_else(tmp_path: Path) -> None:
    write_images(tmp_path / "in", *(f"{i}.png" for i in range(5)))
    run, log = start_run(tmp_path)
    assert read_masks(f"{tmp_path}/out").to_table().schema.equals(current.schema.result_schema(LABELS))
    next(commit_pending(run, log))
    (Path(run.uri) / "masks" / ".tmp-0.parquet").write_bytes(b"PAR")
    (Path(run.uri) / "masks" / f"{'0' * 32}.parquet").write_bytes(b"a stray")
    assert _plans(read_masks(f"{tmp_path}/out")) == {(f"{i}.png", 0): 1 for i in range(3)}


def test_an_empty_run_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    finished_run(tmp_path)
    dataset = read_masks(f"{tmp_path}/out")
    assert dataset.count_rows() == 0
    assert dataset.schema.equals(current.schema.result_schema(LABELS))


def test_carried_columns_of_all_tables_are_there(tmp_path: Path) -> None:
    """Of tables that carry other columns, of photos that carry none, and of one that could not be read at first."""
    write_images(tmp_path / "in", "photo.png")
    write_table(tmp_path / "in" / "a.parquet", 3, city=["Ulm", "Bonn", "Kiel"], n=pa.array([1, 2, 3], pa.int32()))
    lost = write_table(tmp_path / "in" / "b.parquet", 6, group=3, n=[2**40 + row for row in range(6)], late=[0.5] * 6)
    run, log = start_run(tmp_path)
    first, *rest = [ref for ref in pending_chunks(log) if "b.parquet" in _paths(run.uri, ref)]
    with lost.open("r+b") as file:  # while the first chunk is read
        whole = file.read()
        file.write(b"more")
    changed = {"mask": [None] * 3, "status": ["changed"] * 3, "error": ["other version"] * 3}
    commit_chunk(run, result_rows(run, first, Columns(), **changed))
    lost.write_bytes(whole)
    stat = planfile.read_pieces(run.uri, rest[0])[0].version
    _set_version(lost, stat)
    list(commit_pending(run, log))
    table = read_masks(f"{tmp_path}/out").to_table().sort_by([("path", "ascending"), ("row", "ascending")])
    assert table["city"].to_pylist() == ["Ulm", "Bonn", "Kiel", *[None] * 7]
    assert table["n"].to_pylist() == [1, 2, 3, None, None, None, 2**40 + 3, 2**40 + 4, 2**40 + 5, None]
    assert table["late"].to_pylist() == [None] * 6 + [0.5] * 3 + [None]
    assert '"city": {"dtype": "string"' in table.schema.metadata[b"huggingface"].decode()


def _paths(run_uri: str, ref: planfile.ChunkRef) -> set[str]:
    return {piece.path for piece in planfile.read_pieces(run_uri, ref)}


def _set_version(path: Path, version: str) -> None:
    import os

    os.utime(path, ns=(0, int(version.rpartition("-")[2])))
    assert storage.stat(str(path)).version == version


def test_a_flipped_bit_is_no_row(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    (path,) = Path(finished_run(tmp_path).uri, "masks").iterdir()
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="could not verify page integrity"):
        read_masks(f"{tmp_path}/out").to_table()


def test_columns_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "a.parquet", 1, n=[1])
    write_table(tmp_path / "in" / "b.parquet", 1, n=["one"])
    finished_run(tmp_path)
    with pytest.raises(SchemaError, match=r"columns of one name that do not go together: .*Field n has"):
        read_masks(f"{tmp_path}/out")


# ------------------------------------------------------------------------------------------------------------- versions


def _change(path: Path, **columns: Any) -> None:
    """Another version of a file: with a longer image, or more rows."""
    if path.suffix == ".parquet":
        write_table(path, 7, **columns)
    else:
        path.write_bytes(path.read_bytes() + b" ")


def test_the_row_of_the_newest_plan_counts(tmp_path: Path) -> None:
    """Photos that changed once and twice, and a table that is longer now; of chunks that hold others too, or not."""
    photos = [f"{name}.png" for name in "abcdef"]
    write_images(tmp_path / "in", *photos)
    write_table(tmp_path / "in" / "t.parquet", 4)
    finished_run(tmp_path)
    before = {path.name for path in tmp_path.glob("out/run=*/masks/*")}
    for names in (["b.png", "d.png"], ["b.png", "t.parquet"]):
        for name in names:
            _change(tmp_path / "in" / name)
        finished_run(tmp_path)
    dataset = read_masks(f"{tmp_path}/out")
    expected = {(name, 0): 1 for name in photos} | {("d.png", 0): 2, ("b.png", 0): 3}
    assert _plans(dataset) == expected | _table_keys("t.parquet", range(7), plan=3)
    assert before < {path.name for path in tmp_path.glob("out/run=*/masks/*")}, "neither is deleted"
    assert dataset.count_rows() == 13
    found = dataset.to_table(columns=["plan"], filter=ds.field("path") == "b.png")
    assert found["plan"].to_pylist() == [3]
    assert sum(batch.num_rows for batch in dataset.to_batches()) == 13
    with pytest.raises(ValueError, match="filtered"):
        pickle.dumps(dataset)


def test_files_without_a_current_row_are_not_opened(tmp_path: Path) -> None:
    write_images(tmp_path / "in", *(f"{name}.png" for name in "abc"))
    finished_run(tmp_path)
    for name in "abc":
        _change(tmp_path / "in" / f"{name}.png")
    run = finished_run(tmp_path)
    dataset = read_masks(f"{tmp_path}/out")
    assert len(list(dataset.get_fragments())) == 1, "not filtered"
    assert len(list(Path(run.uri, "masks").iterdir())) == 2
    assert set(_plans(dataset).values()) == {2}


def test_the_older_row_counts_until_the_newer_is_there(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    finished_run(tmp_path)
    _change(tmp_path / "in" / "a.png")
    run, log = start_run(tmp_path)
    assert _plans(read_masks(f"{tmp_path}/out")) == {("a.png", 0): 1, ("b.png", 0): 1}
    list(commit_pending(run, log))
    assert _plans(read_masks(f"{tmp_path}/out")) == {("a.png", 0): 2, ("b.png", 0): 1}
    finish(run, log)
    assert _plans(read_masks(f"{tmp_path}/out")) == {("a.png", 0): 2, ("b.png", 0): 1}


def test_what_came_back_counts_and_not_what_was_there_between(tmp_path: Path) -> None:
    """A shorter table too, which is as long as before; then what was there between comes back as well."""
    paths = [tmp_path / "in" / "a.png", write_table(tmp_path / "in" / "t.parquet", 4)]
    write_images(tmp_path / "in", "a.png", "b.png")
    versions = [storage.stat(str(path)).version for path in paths]
    whole = [path.read_bytes() for path in paths]
    finished_run(tmp_path)
    _change(paths[0])
    write_table(paths[1], 2)
    between = [(path.read_bytes(), storage.stat(str(path)).version) for path in paths]
    finished_run(tmp_path)
    for plan, found in ((3, zip(whole, versions, strict=True)), (4, between)):
        for path, (data, version) in zip(paths, found, strict=True):
            path.write_bytes(data)
            _set_version(path, version)
        run = finished_run(tmp_path)
        rows = _table_keys("t.parquet", range(4 if plan == 3 else 2), plan)
        assert _plans(read_masks(f"{tmp_path}/out")) == {("a.png", 0): plan, ("b.png", 0): 1} | rows
        report = audit(f"{tmp_path}/out")
        assert report.ok, report.findings
    assert report.returned == 8
    assert "8 of these rows are of images that came back as they were before a change" in list(report.lines())
    assert read_log(run.uri).newest == 4


def test_rows_behind_the_end_of_a_table_that_is_shorter_now_count_no_more(tmp_path: Path) -> None:
    """Of ten rows in chunks of three; the third chunk is all behind the end, the second in part."""
    write_table(tmp_path / "in" / "t.parquet", 10)
    write_tar(tmp_path / "in" / "u.tar", 5)
    finished_run(tmp_path)
    write_table(tmp_path / "in" / "t.parquet", 5)
    write_tar(tmp_path / "in" / "u.tar", 4)
    run, log = start_run(tmp_path)
    before = _table_keys("t.parquet", range(5), plan=1) | _table_keys("u.tar", range(4), plan=1)
    assert _plans(read_masks(f"{tmp_path}/out")) == before, "its new rows are not there yet"
    list(commit_pending(run, log))
    finish(run, log)
    expected = _table_keys("t.parquet", range(5), plan=2) | _table_keys("u.tar", range(4), plan=2)
    assert _plans(read_masks(f"{tmp_path}/out")) == expected
    write_table(tmp_path / "in" / "t.parquet", 7)
    finished_run(tmp_path)
    expected |= _table_keys("t.parquet", range(7), plan=3)
    assert _plans(read_masks(f"{tmp_path}/out")) == expected, "longer again"


def test_names_that_look_like_rows_are_told_apart(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a#0.png", "a.png", "a.png#0#1.png")
    finished_run(tmp_path)
    _change(tmp_path / "in" / "a.png")
    finished_run(tmp_path)
    assert _plans(read_masks(f"{tmp_path}/out")) == {("a#0.png", 0): 1, ("a.png", 0): 2, ("a.png#0#1.png", 0): 1}


_SPAN = st.tuples(st.integers(1, 4), st.integers(0, 12), st.integers(1, 6))


@given(spans=st.lists(_SPAN, max_size=8), left_out=st.sets(st.integers(0, 7)), retries=st.sets(st.integers(2, 4)))
@settings(max_examples=150, deadline=None)
def test_superseded_is_what_a_table_of_rows_says(
    spans: list[tuple[int, int, int]], left_out: set[int], retries: set[int]
) -> None:
    """Against a dict from row to the newest plan, up to the end of the newest that is no retry."""
    places, seen = list[Place](), set[tuple[int, int]]()
    for index, (plan, first, count) in enumerate(spans):
        rows = {(plan, row) for row in range(first, first + count)}
        if not rows & seen:
            seen |= rows
            places.append(Place("t.parquet", first, count, plan, f"chunk {index}"))
    ignored = {f"chunk {index}" for index in left_out}
    rows_of = {place: range(place.first_row, place.first_row + place.n_rows) for place in places}
    newest: dict[int, int] = {}
    for place in places:
        for row in rows_of[place] if place.chunk_id not in ignored else ():
            newest[row] = max(newest.get(row, 0), place.plan)
    plans = {place.plan for place in places}
    listed = max(plans - retries or plans, default=0)
    end = max((max(rows) + 1 for place, rows in rows_of.items() if place.plan == listed), default=0)
    expected = {
        (place.chunk_id, row)
        for place in places
        if place.chunk_id not in ignored
        for row in rows_of[place]
        if len(plans) > 1 and (newest[row] > place.plan or row >= end)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            planfile, "read_places", lambda run, number: iter(sorted(place for place in places if place.plan == number))
        )
        patch.setattr(planfile, "is_retry", lambda run, number: number in retries)
        found = find_superseded("run", 4, lambda chunk_id: chunk_id not in ignored)
    parts = [
        (name, row)
        for name, parts in found.parts.items()
        for part in parts
        for row in range(part.first_row, part.first_row + part.n_rows)
    ]
    whole = [(place.chunk_id, row) for place in places if found.has_all(place.chunk_id) for row in rows_of[place]]
    assert (len(set(parts)), set(parts) | set(whole)) == (len(parts), expected)
    assert found.rows == Counter(name for name, _ in expected)
    assert found.parts.keys() == found.rows.keys() - {
        place.chunk_id for place in places if set(_rows(place)) <= expected
    }


def _rows(place: Place) -> list[tuple[str, int]]:
    return [(place.chunk_id, row) for row in place.rows]


def test_a_chunk_that_is_superseded_as_a_whole_is_one_count(tmp_path: Path) -> None:
    """Chunks of three images and of three rows of a table; of each, one is uploaded again as a whole, or shorter."""
    write_images(tmp_path / "in", *(f"{name}.png" for name in "abcdefghi"))
    write_table(tmp_path / "in" / "t.parquet", 9)
    run, _ = start_run(tmp_path)
    first = [ref.chunk_id for refs in planfile.read_refs(run.uri, 1) for ref in refs]
    for name in "abceg":
        (tmp_path / "in" / f"{name}.png").write_bytes(png(50, size=(5, 5)))
    start_run(tmp_path)
    second = [ref.chunk_id for refs in planfile.read_refs(run.uri, 2) for ref in refs]
    assert find_superseded(run.uri, 2, lambda name: name != first[1]) == Superseded(
        {first[0]: 3, first[2]: 1}, {first[2]: [Place("g.png", 0, 1, 1, first[2])]}
    )
    write_table(tmp_path / "in" / "t.parquet", 5)
    (tmp_path / "in" / "a.png").write_bytes(png(60, size=(6, 6)))
    start_run(tmp_path)
    found = find_superseded(run.uri, 3)
    assert found.rows == dict.fromkeys([first[0], *first[3:]], 3) | {first[1]: 1, first[2]: 1, second[0]: 1}
    assert found.parts.keys() == {first[1], first[2], second[0]}


# ----------------------------------------------------------------------------------------------------------- which run


def test_one_of_several_runs_must_be_named(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    first = finished_run(tmp_path)
    second = open_run(f"{tmp_path}/out", f"{tmp_path}/in", IDENTITY | {"model": "other"}, LABELS)
    with pytest.raises(ConfigError, match=rf"holds 2 runs, which may differ; name one: run=.*{second.run_id}"):
        read_masks(f"{tmp_path}/out")
    assert read_masks(f"{tmp_path}/out", first.run_id).count_rows() == 1
    assert read_masks(f"{tmp_path}/out", f"run={second.run_id}").count_rows() == 0
    with pytest.raises(ConfigError, match="holds no run 0123"):
        read_masks(f"{tmp_path}/out", "0123")
    with pytest.raises(ConfigError, match="nothing is no run"):
        read_masks(f"{tmp_path}/nothing")


@pytest.mark.s3
def test_masks_in_a_store(s3: Shim, tmp_path: Path) -> None:
    """By our own requests: pyarrow would ask Amazon."""
    root = "s3://bucket/job #1"
    for name in ("a.png", "b c.png"):
        storage.put_if_absent(f"{root}/in/{name}", b"first")
    table = write_table(tmp_path / "t.parquet", 4, city=["Ulm"] * 4)
    storage.put_if_absent(f"{root}/in/t.parquet", table.read_bytes())
    finished_run(root)
    dataset = read_masks(f"{root}/out")
    expected = {("a.png", 0): 1, ("b c.png", 0): 1} | _table_keys("t.parquet", range(4), plan=1)
    assert _plans(dataset) == _plans(pickle.loads(pickle.dumps(dataset))) == expected
    assert set(dataset.to_table()["city"].to_pylist()) == {"Ulm", None}
    storage.replace(f"{root}/in/a.png", b"second")
    finished_run(root)
    assert _plans(read_masks(f"{root}/out")) == expected | {("a.png", 0): 2}
    with pytest.raises(OSError, match="for reading"):
        dataset.filesystem.delete_file("bucket/x")
