import io
import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import AuditError, SchemaError, StorageError
from fcn_ray.tables import plan, planfile, seal
from fcn_ray.tables.audit_plans import check_coverage, check_plan, find_kinds
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.plan import (
    PlanLog,
    Totals,
    count_chunks,
    extend_plan,
    pending_chunks,
    preview_plan,
    read_chunk,
    read_log,
)
from fcn_ray.tables.sources import Piece, Source
from tests.tables.making import write_images, write_table
from tests.tables.planning import Folder, Planner, list_slowly


def _extend(root: Path, rows: int = 3, put: plan.Put = storage.put_if_absent) -> PlanLog:
    return extend_plan(f"{root}/run", f"{root}/in", ChunkConfig(rows=rows), Columns(), put)


def _chunks(root: Path) -> dict[str, list[Piece]]:
    """Every chunk of the log by id; two of one id would be an error of their own."""
    refs = list(pending_chunks(read_log(f"{root}/run")))
    chunks = {ref.chunk_id: read_chunk(f"{root}/run", ref) for ref in refs}
    assert len(chunks) == len(refs)
    return chunks


def _covered(root: Path) -> Counter[tuple[str, str, int]]:
    """How often each row of each input version is planned, but for those that came back."""
    uri = f"{root}/run"
    refs = [ref for ref in pending_chunks(read_log(uri)) if not _lists_again(planfile.plan_uri(uri, ref.plan))]
    pieces = itertools.chain.from_iterable(read_chunk(uri, ref) for ref in refs)
    return Counter((p.path, p.version, row) for p in pieces for row in range(p.first_row, p.first_row + p.n_rows))


@cache
def _lists_again(uri: str) -> bool:
    return b"fcn_ray.kind" in pq.read_metadata(uri).metadata


def _audit(root: Path) -> list[tuple[str, str]]:
    numbers = range(1, read_log(f"{root}/run").newest + 1)
    found = [problem for number in numbers for problem in check_plan(f"{root}/run", number)]
    return found + list(check_coverage(f"{root}/run", numbers, *find_kinds(f"{root}/run", numbers)))


def _newest(root: Path) -> dict[str, str]:
    """The version of each path in the newest plan that has it."""
    log = read_log(f"{root}/run")
    plans = [pq.read_table(planfile.plan_uri(log.run_uri, number)) for number in range(1, log.newest + 1)]
    return {row["path"]: row["version"] for table in plans for row in table.to_pylist()}


def test_a_plan_holds_all_inputs_and_workers_find_their_part(tmp_path: Path) -> None:
    write_images(tmp_path / "in", *(f"{i}.png" for i in range(7)))
    write_table(tmp_path / "in" / "t.parquet", 10, group=4)
    (tmp_path / "in" / "bad.parquet").write_bytes(b"")
    log = _extend(tmp_path)
    assert (log.newest, log.chunks, log.rows, log.new_chunks, log.new_rows) == (1, 7, 17, 7, 17)
    assert [table.path for table in log.listing.quarantined] == ["bad.parquet"]
    refs = list(pending_chunks(log))
    assert [(ref.plan, ref.first, ref.count, ref.n_rows) for ref in refs] == [
        *[(1, 0, 3, 3), (1, 3, 3, 3), (1, 6, 1, 1)],
        *[(1, 7, 1, 3), (1, 8, 1, 3), (1, 9, 1, 2), (1, 10, 1, 2)],
    ]
    assert [piece.path for piece in read_chunk(log.run_uri, refs[1])] == ["3.png", "4.png", "5.png"]
    assert [(p.path, p.first_row, p.n_rows) for p in read_chunk(log.run_uri, refs[4])] == [("t.parquet", 3, 3)]
    assert _audit(tmp_path) == []


def test_without_new_inputs_there_is_no_new_plan(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    _extend(tmp_path)
    log = _extend(tmp_path, put=lambda uri, data: pytest.fail("nothing is new"))
    assert (log.newest, log.chunks, log.new_chunks) == (1, 1, 0)


def test_quarantined_tables_are_tried_again(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    (tmp_path / "in" / "t.parquet").write_bytes(b"")
    for _ in range(2):
        assert _extend(tmp_path).listing.n_quarantined == 1
    write_table(tmp_path / "in" / "t.parquet", 2)
    log = _extend(tmp_path)
    assert (log.new_rows, log.listing.n_quarantined) == (2, 0)


def test_an_input_of_which_nothing_can_be_planned_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2)
    with pytest.raises(SchemaError, match=r"t\.parquet: image column 'photo' is missing, found 'image'"):
        extend_plan(f"{tmp_path}/run", f"{tmp_path}/in", ChunkConfig(), Columns(image="photo"))
    assert not (tmp_path / "run").exists()


def test_a_preview_writes_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    _extend(tmp_path)
    write_images(tmp_path / "in", "c.png")
    before = sorted(tmp_path.rglob("*"))
    log = preview_plan(f"{tmp_path}/run", f"{tmp_path}/in", ChunkConfig(rows=3), Columns())
    assert (log.newest, log.chunks, log.rows, log.new_chunks, log.new_rows) == (1, 2, 3, 1, 1)
    assert [ref.n_rows for ref in pending_chunks(log)] == [2]
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------- growth and races, as a property

_NAMES = st.sampled_from(["a.png", "b.png", "b/c.png", "b-.png", "d.png", "t.parquet", "u/v.parquet"])
_STEP = st.tuples(st.just("step"), st.integers(0, 2), st.integers(1, 9))
_CHANGE = st.tuples(st.sampled_from(["write", "restore", "delete"]), st.sets(_NAMES, min_size=1, max_size=3))
_STEPS = st.lists(st.one_of(_STEP, _STEP, _STEP, _CHANGE, st.tuples(st.just("die"), st.integers(0, 2))), min_size=12)


@given(first=st.sets(_NAMES, min_size=2), steps=_STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_input_version_is_in_one_chunk(tmp_path_factory: pytest.TempPathFactory, first, steps) -> None:
    """Three drivers with other limits list, draft and put in any order, and die and start again in the midst of it.

    Meanwhile files are added before, between and behind those that they have seen, changed, changed back and deleted; a
    plan is full with three pieces, so that most drafts are several plans.
    """
    root = tmp_path_factory.mktemp("race")
    folder, planners = Folder(root), dict[int, Planner]()
    folder.write(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "list_inputs", list_slowly)
        patch.setattr(plan, "MAX_PLAN_PIECES", 3)
        for kind, what, *times in steps:
            if kind == "step":
                _take_steps(planners, what, times[0], root)
            elif kind == "die" and what in planners:
                planners[what].die()
            elif kind in {"write", "delete", "restore"}:
                getattr(folder, kind)(what)
            assert set(_covered(root).values()) <= {1}
        while running := [planner for planner in planners.values() if not planner.ended]:
            for planner in running:
                planner.step()
        assert [planner.error for planner in planners.values() if planner.error] == []
    _extend(root)
    covered = _covered(root)
    assert set(covered.values()) <= {1}
    assert folder.versions() <= set(covered) <= folder.seen
    newest = _newest(root)
    assert {path: newest[path] for path, _, _ in folder.versions()} == {path: v for path, v, _ in folder.versions()}
    log = _extend(root, put=lambda uri, data: pytest.fail("nothing is new"))
    assert log.listing.returned == 0
    assert _audit(root) == []


def _take_steps(planners: dict[int, Planner], number: int, times: int, root: Path) -> None:
    for _ in range(times):
        if number not in planners or planners[number].ended:
            planners[number] = Planner(root, rows=number + 1)
        planners[number].step()


def test_the_loser_of_a_race_plans_what_the_winner_leaves(tmp_path: Path) -> None:
    drafts: list[tuple[str, bytes]] = []
    write_images(tmp_path / "in", "b.png")
    _extend(tmp_path, put=lambda uri, data: drafts.append((uri, data)) is None)  # lists, and is slow to put
    write_images(tmp_path / "in", "a.png", "c.png")

    def put(uri: str, data: bytes) -> bool:
        if drafts:
            assert storage.put_if_absent(*drafts.pop())
        return storage.put_if_absent(uri, data)

    log = _extend(tmp_path, put=put)
    assert [[piece.path for piece in chunk] for chunk in _chunks(tmp_path).values()] == [["b.png"], ["a.png", "c.png"]]
    assert (log.newest, log.chunks, log.rows, log.new_rows) == (2, 2, 3, 3)


def test_an_input_that_comes_back_is_planned_again_once(tmp_path: Path) -> None:
    """An image and a table, each changed and then as before; two drivers see it at once."""
    names = {"a.png", "t.parquet"}
    folder = Folder(tmp_path)
    folder.write(names | {"b.png"})
    _extend(tmp_path)
    before, ids = folder.versions(), set(_chunks(tmp_path))
    folder.write(names)
    _extend(tmp_path)
    for path, version, _ in before:
        os.utime(tmp_path / "in" / path, ns=(0, int(version.rpartition("-")[2])))
    assert folder.versions() == before
    write_images(tmp_path / "in", "c.png")
    drafts = preview_plan(f"{tmp_path}/run", f"{tmp_path}/in", ChunkConfig(rows=3), Columns())
    assert (drafts.new_rows, drafts.newest) == (7, 2), "c, a and five rows"
    winner: list[PlanLog] = []

    def put(uri: str, data: bytes) -> bool:
        if uri.endswith("4.parquet") and not winner:
            winner.append(_extend(tmp_path, rows=2))
        return storage.put_if_absent(uri, data)

    log = _extend(tmp_path, put=put)
    assert (log.newest, log.new_rows, log.listing.returned) == (4, 7, 2)
    assert set(_covered(tmp_path).values()) == {1}
    refs = [ref for ref in pending_chunks(log) if ref.plan == 4]
    again = [piece for ref in refs for piece in read_chunk(log.run_uri, ref)]
    assert {(p.path, p.version, row) for p in again for row in range(p.first_row, p.first_row + p.n_rows)} == {
        known for known in before if known[0] != "b.png"
    }
    assert not {ref.chunk_id for ref in refs} & ids
    assert _audit(tmp_path) == []
    assert _extend(tmp_path, put=lambda uri, data: pytest.fail("nothing is new")).listing.returned == 0


def test_jobs_that_start_at_once_share_the_work(tmp_path: Path) -> None:
    write_images(tmp_path / "in", *(f"{i:02}.png" for i in range(40)))
    barrier = threading.Barrier(3)

    def plan_at_once(rows: int) -> PlanLog:
        barrier.wait()
        return _extend(tmp_path, rows)

    with ThreadPoolExecutor(3) as pool:
        logs = list(pool.map(plan_at_once, [2, 3, 5]))
    assert set(_covered(tmp_path).values()) == {1}
    assert {log.rows for log in logs} == {40}


def test_ids_depend_on_the_uncovered_inputs_only(tmp_path: Path) -> None:
    for name in ("fresh", "grown"):
        (tmp_path / name).mkdir()
    write_images(tmp_path / "grown" / "in", "m.png", "z.png")
    first = set(_chunks(tmp_path / "grown")) if _extend(tmp_path / "grown") else set()
    for name in ("fresh", "grown"):
        for image in ("a.png", "b.png", "n.png", "zz.png"):
            write_images(tmp_path / name / "in", image)
            os.utime(tmp_path / name / "in" / image, ns=(0, 1))
        _extend(tmp_path / name)
    assert set(_chunks(tmp_path / "grown")) - first == set(_chunks(tmp_path / "fresh"))


# ------------------------------------------------------------------------------------------------------------- limits


def test_a_large_input_makes_several_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", *(f"{i}.png" for i in range(6)))
    write_table(tmp_path / "in" / "t.parquet", 9, group=1)
    monkeypatch.setattr(plan, "MAX_PLAN_PIECES", 4)
    log = _extend(tmp_path, rows=1)
    plans = [
        pq.read_table(planfile.plan_uri(log.run_uri, number))["path"].to_pylist() for number in range(1, log.newest + 1)
    ]
    assert plans == [["0.png", "1.png", "2.png", "3.png"], ["4.png", "5.png", *["t.parquet"] * 9]], (
        "a table is not split"
    )
    assert (log.chunks, log.rows) == (15, 15)
    assert _audit(tmp_path) == []


def test_row_groups_of_a_plan_hold_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planfile, "_GROUP_ROWS", 4)
    write_images(tmp_path / "in", *(f"{i}.png" for i in range(9)))
    log = _extend(tmp_path, rows=3)
    footer = pq.read_metadata(planfile.plan_uri(log.run_uri, 1))
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [6, 3]
    assert set(_covered(tmp_path).values()) == {1}
    assert [ref.first for ref in pending_chunks(log)] == [0, 3, 6]


def test_progress_is_what_is_in_masks(tmp_path: Path) -> None:
    write_images(tmp_path / "in", *(f"{i}.png" for i in range(8)))
    log = _extend(tmp_path)
    refs = list(pending_chunks(log))
    masks = tmp_path / "run" / "masks"
    masks.mkdir()
    for name in (f"{refs[1].chunk_id}.parquet", f"{'0' * 32}.parquet", f".tmp-{refs[0].chunk_id}.parquet", "notes.txt"):
        (masks / name).write_bytes(b"")
    assert list(pending_chunks(log)) == [refs[0], refs[2]]
    assert count_chunks(log) == Totals(chunks=3, rows=8, done_chunks=1, done_rows=3)


# ------------------------------------------------------------------------------------------------ plans of old versions


def test_a_run_that_was_planned_before_bytes_and_tars_goes_on_as_it_was(tmp_path: Path) -> None:
    """Its plan has no offsets, and chunks of a table that are cut otherwise today; nothing of it is planned again."""
    write_table(tmp_path / "in" / "t.parquet", 10, group=10, image=[os.urandom(1000) for _ in range(10)])
    write_images(tmp_path / "in", "a.png")
    _extend(tmp_path, rows=4)
    path = planfile.plan_uri(f"{tmp_path}/run", 1)
    _write_as_before(path)
    before = _chunks(tmp_path)
    assert sorted(piece.n_rows for (piece,) in before.values()) == [1, 2, 4, 4]
    write_table(tmp_path / "in" / "u.parquet", 10, group=10, image=[os.urandom(1000) for _ in range(10)])
    limits = ChunkConfig(rows=4, bytes=2500)
    log = extend_plan(f"{tmp_path}/run", f"{tmp_path}/in", limits, Columns())
    assert (log.newest, log.new_rows) == (2, 10)
    after = _chunks(tmp_path)
    assert before.items() <= after.items()
    assert {piece.path for name in after.keys() - before.keys() for piece in after[name]} == {"u.parquet"}
    assert max(piece.n_rows for (piece,) in (after[name] for name in after.keys() - before.keys())) < 4
    assert _audit(tmp_path) == []


def _write_as_before(path: str) -> None:
    table = pq.read_table(path).drop_columns(["offset", "offset_row"])
    metadata = {"fcn_ray.chunks": "4", "fcn_ray.rows": "11", "fcn_ray.seal": seal.BLANK}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema.remove_metadata(), store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    Path(path).write_bytes(seal.seal(sink))


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_missing_plan_stops_the_job(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_images(tmp_path / "in", name)
        _extend(tmp_path)
    (tmp_path / "run" / "plans" / "000002.parquet").unlink()
    with pytest.raises(AuditError, match=r"000002.parquet is missing, though later plans are there"):
        _extend(tmp_path)


def test_a_damaged_plan_stops_the_job(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    log = _extend(tmp_path)
    path = tmp_path / "run" / "plans" / "000001.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AuditError, match=r"000001.parquet is damaged"):
        list(pending_chunks(log))


@pytest.mark.parametrize("damage", ["types", "totals"])
def test_a_plan_that_reads_as_something_else_stops_the_job(tmp_path: Path, damage: str) -> None:
    """As after one flipped bit in its footer, which no checksum of a page covers."""
    write_images(tmp_path / "in", "a.png")
    _extend(tmp_path)
    path = planfile.plan_uri(f"{tmp_path}/run", 1)
    table, metadata = pq.read_table(path), {"fcn_ray.chunks": "1" if damage == "types" else "q", "fcn_ray.rows": "1"}
    if damage == "types":
        table = table.set_column(1, "path", [table["path"].cast("binary")])
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(AuditError, match=r"000001.parquet is damaged"):
        _extend(tmp_path)


def test_no_flipped_bit_makes_a_job_plan_something_again(tmp_path: Path) -> None:
    """Row counts in the footer have no checksum: a plan that seems shorter than it is would leave inputs uncovered."""
    write_images(tmp_path / "in", "a.png", "b.png", "c.png")
    _extend(tmp_path)
    path = Path(planfile.plan_uri(f"{tmp_path}/run", 1))
    shorter = list(_flips_that_leave(path.read_bytes(), rows=1)) + list(_flips_that_leave(path.read_bytes(), rows=2))
    assert shorter, "no bit makes it shorter"
    for damaged in shorter:
        path.write_bytes(damaged)
        with pytest.raises(AuditError, match=r"000001.parquet is damaged"):
            _extend(tmp_path, put=lambda uri, data: pytest.fail("nothing is new"))


def _flips_that_leave(data: bytes, rows: int) -> Iterator[bytes]:
    """A file with one bit flipped in its footer, so that its row group has so many rows."""
    for bit in range((len(data) - 8 - int.from_bytes(data[-8:-4], "little")) * 8, len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(pa.ArrowException, OSError, ValueError, IndexError):
            if pq.read_metadata(io.BytesIO(damaged)).row_group(0).num_rows == rows:
                yield bytes(damaged)


def test_a_worker_notices_a_changed_plan(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    log = _extend(tmp_path, rows=1)
    first, second = pending_chunks(log)
    swapped = planfile.ChunkRef(first.chunk_id, second.plan, second.first, second.count, second.n_rows)
    with pytest.raises(AuditError, match=f"does not hold chunk {first.chunk_id} at piece 1"):
        read_chunk(log.run_uri, swapped)
    table = pq.read_table(planfile.plan_uri(log.run_uri, 1))
    table = table.set_column(1, "path", [["a.png", "c.png"]])
    pq.write_table(table, planfile.plan_uri(log.run_uri, 1))
    with pytest.raises(AuditError, match=f"does not hold chunk {second.chunk_id}"):
        read_chunk(log.run_uri, second)


def test_a_listing_out_of_order_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = [Source(name, "image", 1, "1") for name in ("b.png", "a.png")]
    monkeypatch.setattr(plan, "list_inputs", lambda uri, listing: iter(sources))
    with pytest.raises(StorageError, match=r"not sorted: 'a.png' after 'b.png'"):
        _extend(tmp_path)
    assert not (tmp_path / "run").exists()
