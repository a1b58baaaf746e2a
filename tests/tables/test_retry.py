"""Rows that failed are planned again, each at most once in a plan, and never what is right or still pending."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import AuditError
from fcn_ray.tables import plan, planfile
from fcn_ray.tables.audit import audit
from fcn_ray.tables.audit_plans import find_kinds
from fcn_ray.tables.chunks import chunk_id
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.current import read_masks
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import PlanLog, extend_plan, pending_chunks, read_chunk, read_log, read_states
from fcn_ray.tables.planfile import PlanWriter, plan_uri
from fcn_ray.tables.reading import read_rows as read_inputs
from fcn_ray.tables.retry import find_failed, plan_retries
from fcn_ray.tables.runs import Run
from fcn_ray.tables.schema import BAD_STATUSES, PASSING_STATUSES
from fcn_ray.tables.sources import Listing, Piece
from fcn_ray.tables.statuses import count_current, read_rows
from fcn_ray.tables.superseded import Superseded, find_superseded
from tests.tables.archives import tar, write_tar
from tests.tables.failing import Key, commit_all, commit_rows, keys_of
from tests.tables.making import start_run, write_images, write_table

BAD: Mapping[Key, str] = {
    ("a.png", 0): "crash",
    ("c.png", 0): "corrupt",
    ("e.png", 0): "timeout",
    ("t.parquet", 1): "predict",
    ("t.parquet", 2): "unreadable",
    ("t.parquet", 5): "changed",
    ("t.parquet", 8): "null",
}
PASSING = {key for key, status in BAD.items() if status in PASSING_STATUSES}


@pytest.fixture
def failed(tmp_path: Path) -> Run:
    """Five images and a table of ten, in chunks of three, of which seven rows are bad; finished."""
    write_images(tmp_path / "in", *(f"{name}.png" for name in "abcde"))
    write_table(tmp_path / "in" / "t.parquet", 10)
    run, log = start_run(tmp_path)
    finish(run, log, commit_all(run, log, BAD))
    return run


def _retry(run: Run, *statuses: str, rows: int = 3, put: plan.Put = storage.put_if_absent) -> PlanLog:
    return plan_retries(read_log(run.uri), statuses or PASSING_STATUSES, ChunkConfig(rows=rows), put)


def _current(run: Run) -> dict[Key, tuple[str, int]]:
    """Status and plan of each row that counts."""
    rows = read_masks(run.uri).to_table(columns=["path", "row", "status", "plan"]).to_pylist()
    assert len({(row["path"], row["row"]) for row in rows}) == len(rows)
    return {(row["path"], row["row"]): (row["status"], row["plan"]) for row in rows}


def _audit(run: Run) -> tuple[list[object], list[str]]:
    report = audit(str(Path(run.uri).parent))
    return list(report.findings), report.unfinished


# ------------------------------------------------------------------------------------------------------------ the round


def test_what_may_pass_is_tried_again_and_its_new_row_counts(failed: Run) -> None:
    before = {path: path.read_bytes() for path in Path(failed.uri).rglob("*") if path.is_file()}
    log = _retry(failed)
    assert (log.newest, log.rows - 15, log.chunks - 6) == (2, 5, 2)
    pending = list(pending_chunks(log))
    assert [keys_of(failed, ref) for ref in pending] == [
        [("a.png", 0), ("e.png", 0)],
        [("t.parquet", 1), ("t.parquet", 2), ("t.parquet", 5)],
    ]
    assert [(p.first_row, p.n_rows) for p in read_chunk(failed.uri, pending[1])] == [(1, 2), (5, 1)]
    still = {("a.png", 0): "crash"}
    finish(failed, log, commit_all(failed, log, still))
    expected = dict.fromkeys(_current(failed), ("ok", 1)) | {key: (status, 1) for key, status in BAD.items()}
    expected |= {key: (still.get(key, "ok"), 2) for key in PASSING}
    assert _current(failed) == expected
    assert _audit(failed) == ([], [])
    assert {path: path.read_bytes() for path in before if path.name != "_SUCCESS"} == {
        path: data for path, data in before.items() if path.name != "_SUCCESS"
    }
    line = "5 of these rows are of images that had failed; fcn_ray.read_masks leaves the older out"
    assert line in list(audit(str(Path(failed.uri).parent)).lines())
    assert [keys_of(failed, ref) for ref in pending_chunks(_retry(failed))] == [[("a.png", 0)]], "as often as asked"


def test_all_that_is_bad_is_tried_again_when_asked_for(failed: Run) -> None:
    log = _retry(failed, *BAD_STATUSES)
    assert {key for ref in pending_chunks(log) for key in keys_of(failed, ref)} == set(BAD)
    finish(failed, log, commit_all(failed, log))
    assert _audit(failed) == ([], [])
    assert set(_current(failed).values()) == {("ok", 1), ("ok", 2)}
    assert _retry(failed, *BAD_STATUSES) == read_log(failed.uri), "nothing is left"


def test_rows_that_wait_for_their_turn_are_not_planned_again(failed: Run) -> None:
    log = _retry(failed)
    assert _retry(failed, put=lambda uri, data: pytest.fail("all of them are pending")) == log
    first = next(pending_chunks(log))
    commit_rows(failed, first, {("a.png", 0): "crash"})
    again = _retry(failed)
    assert [keys_of(failed, ref) for ref in pending_chunks(again) if ref.plan == 3] == [[("a.png", 0)]]
    finish(failed, again, commit_all(failed, again))
    assert _current(failed)["a.png", 0] == ("ok", 3)
    assert _audit(failed) == ([], [])


def test_an_input_that_changed_since_is_not_tried_in_its_old_version(failed: Run, tmp_path: Path) -> None:
    (tmp_path / "in" / "a.png").write_bytes(b"another")
    _, log = start_run(tmp_path)
    retried = plan_retries(log, PASSING_STATUSES, ChunkConfig(rows=3))
    listed = [keys_of(failed, ref) for ref in pending_chunks(retried)]
    assert listed[0] == [("a.png", 0)], "as a new version"
    assert listed[1] == [("e.png", 0)], "and not again"
    assert retried.listing == log.listing
    commit_all(failed, retried)
    assert _audit(failed)[0] == []


def test_rows_that_a_table_has_no_more_are_not_tried_again(failed: Run, tmp_path: Path) -> None:
    """They would become `changed`, and be tried again by every job."""
    write_table(tmp_path / "in" / "t.parquet", 5)
    _, log = start_run(tmp_path)
    commit_all(failed, log)
    listed = [keys_of(failed, ref) for ref in pending_chunks(_retry(failed))]
    assert listed == [[("a.png", 0), ("e.png", 0)]]


def test_a_retry_of_rows_that_a_table_has_no_more_changes_nothing(failed: Run, tmp_path: Path) -> None:
    """As older versions planned them: the rows of the newest version count, and neither those nor their retries."""
    old = _piece(failed, "t.parquet", 5, 1)
    write_table(tmp_path / "in" / "t.parquet", 5)
    _, log = start_run(tmp_path)
    finish(failed, log, commit_all(failed, log))
    before = _current(failed)
    _put_retry(failed, 3, [old])
    log = read_log(failed.uri)
    commit_all(failed, log, {("t.parquet", 5): "changed"})
    assert _current(failed) == before
    assert not {key for key, (status, _) in before.items() if status != "ok"} & {("t.parquet", 5), ("t.parquet", 8)}


def test_unfinished_runs_are_tried_again_too(tmp_path: Path) -> None:
    """Without a manifest the rows themselves tell; what is not done is no failure."""
    write_images(tmp_path / "in", *(f"{name}.png" for name in "abcdef"))
    run, log = start_run(tmp_path)
    commit_rows(run, next(pending_chunks(log)), {("b.png", 0): "timeout", ("c.png", 0): "empty"})
    log = _retry(run)
    assert [keys_of(run, ref) for ref in pending_chunks(log)] == [
        [(f"{name}.png", 0) for name in "def"],
        [("b.png", 0)],
    ]


def test_chunks_of_a_retry_keep_the_limits(failed: Run) -> None:
    log = plan_retries(read_log(failed.uri), BAD_STATUSES, ChunkConfig(rows=2))
    assert [keys_of(failed, ref) for ref in pending_chunks(log)] == [
        [("a.png", 0), ("c.png", 0)],
        [("e.png", 0)],
        [("t.parquet", 1), ("t.parquet", 2)],
        [("t.parquet", 5), ("t.parquet", 8)],
    ]


def test_long_runs_of_failures_are_cut(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 10)
    run, log = start_run(tmp_path, rows=10)
    commit_all(run, log, {("t.parquet", row): "crash" for row in range(2, 10)})
    log = plan_retries(log, PASSING_STATUSES, ChunkConfig(rows=3))
    assert [[row for _, row in keys_of(run, ref)] for ref in pending_chunks(log)] == [[2, 3, 4], [5, 6, 7], [8, 9]]


def test_images_of_a_tar_are_read_again_by_their_numbers(tmp_path: Path) -> None:
    """The piece of a retry says where the chunk began, of which its rows are a part."""
    write_tar(tmp_path / "in" / "a.tar", 9)
    run, log = start_run(tmp_path, rows=4)
    commit_all(run, log, {("a.tar", row): "crash" for row in (2, 5, 7, 8)})
    log = plan_retries(log, PASSING_STATUSES, ChunkConfig(rows=3))
    read = [
        row
        for ref in pending_chunks(log)
        for row in read_inputs(understand_input(run.input), read_chunk(run.uri, ref), Columns()).to_pylist()
    ]
    assert [(row["row"], row["image"]) for row in read] == [(row, b"tar image %d" % row) for row in (2, 5, 7, 8)]
    finish(run, log, commit_all(run, log))
    assert _audit(run) == ([], [])


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_large_rows_of_a_table_or_tar_are_not_tried_again_in_one_chunk(tmp_path: Path, kind: str) -> None:
    """Ten images of 10 kB each and a little more: at most 3 fit into 32 kB, in the first plan, a retry, and another."""
    if kind == "tar":
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "t.tar").write_bytes(tar((f"{row}.jpg", bytes(10_000)) for row in range(10)))
    else:
        write_table(tmp_path / "in" / "t.parquet", 10, group=5, image=[os.urandom(10_000) for _ in range(10)])
    limits = ChunkConfig(rows=10, bytes=32_000)
    run, _ = start_run(tmp_path, rows=10)
    os.remove(plan_uri(run.uri, 1))
    log = extend_plan(run.uri, run.input, limits, Columns())
    counts = []
    for _ in range(3):
        counts.append([ref.n_rows for ref in pending_chunks(log)])
        commit_all(run, log, {(f"t.{kind}", row): "crash" for row in range(10)})
        log = plan_retries(log, PASSING_STATUSES, limits)
    assert [(sum(found), max(found)) for found in counts] == [(10, 3)] * 3
    commit_all(run, log, {(f"t.{kind}", row): "crash" for row in range(10)})
    lower = plan_retries(log, PASSING_STATUSES, ChunkConfig(rows=10, bytes=5_000))
    assert [ref.n_rows for ref in pending_chunks(lower)] == [1] * 10


def test_a_retry_of_a_plan_that_knows_the_size_of_the_table_only_has_smaller_chunks(
    failed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older versions wrote it: each row counts as a part of the file, never as less than it is."""
    before = planfile.read_pieces
    monkeypatch.setattr(
        planfile,
        "read_pieces",
        lambda run, ref: [replace(p, size=p.size if p.kind == "image" else 9000) for p in before(run, ref)],
    )
    log = plan_retries(read_log(failed.uri), PASSING_STATUSES, ChunkConfig(rows=9, bytes=3000))
    monkeypatch.undo()
    assert [keys_of(failed, ref) for ref in pending_chunks(log)] == [
        [("a.png", 0), ("e.png", 0)],
        *[[("t.parquet", row)] for row in (1, 2, 5)],
    ]


def test_two_tables_and_large_images_are_never_in_one_chunk(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    for name in "tu":
        write_table(tmp_path / "in" / f"{name}.parquet", 2, **{f"only_{name}": [1, 2]})
    run, log = start_run(tmp_path)
    bad = {key: "crash" for ref in pending_chunks(log) for key in keys_of(run, ref)}
    commit_all(run, log, bad)
    log = plan_retries(log, PASSING_STATUSES, ChunkConfig(rows=9, bytes=1))
    assert [[key[0] for key in keys_of(run, ref)] for ref in pending_chunks(log)] == [
        ["a.png"],
        ["b.png"],
        *[["t.parquet"]] * 2,
        *[["u.parquet"]] * 2,
    ]
    commit_all(run, log)
    assert read_masks(run.uri).to_table()["only_u"].to_pylist() == [None] * 4 + [1, 2]


def test_many_failures_make_several_plans(failed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_PLAN_PIECES", 2)
    log = _retry(failed)
    assert (log.newest, log.rows) == (3, 20), "two runs of rows in each plan: a, e; t 1-2, t 5"
    assert len({key for ref in pending_chunks(log) for key in keys_of(failed, ref)}) == 5
    commit_all(failed, log)
    assert _audit(failed)[0] == []


# ------------------------------------------------------------------------------------------------------------- at once


def test_the_slower_of_two_drivers_finds_nothing_left(failed: Run) -> None:
    winner: list[PlanLog] = []

    def put(uri: str, data: bytes) -> bool:
        if not winner:
            winner.append(_retry(failed, rows=2))
        return storage.put_if_absent(uri, data)

    listing = Listing(older=7)
    log = plan_retries(replace(read_log(failed.uri), listing=listing), PASSING_STATUSES, ChunkConfig(rows=3), put)
    assert log.listing is listing
    assert (log.newest, log.rows) == (winner[0].newest, winner[0].rows) == (2, 20)
    keys = [key for ref in pending_chunks(log) for key in keys_of(failed, ref)]
    assert (len(keys), set(keys)) == (5, PASSING)


def test_the_slower_driver_takes_what_failed_again_meanwhile(failed: Run) -> None:
    """The faster one has put its plan and is through with it, but for the table."""
    others: list[PlanLog] = []

    def put(uri: str, data: bytes) -> bool:
        if not others:
            others.append(_retry(failed))
            commit_rows(failed, next(pending_chunks(others[0])), {("e.png", 0): "crash"})
        return storage.put_if_absent(uri, data)

    log = _retry(failed, put=put)
    assert [keys_of(failed, ref) for ref in pending_chunks(log) if ref.plan == 3] == [[("e.png", 0)]]
    finish(failed, log, commit_all(failed, log))
    assert set(_current(failed).values()) >= {("ok", 3)}
    assert _audit(failed) == ([], [])


def test_a_new_version_that_is_planned_meanwhile_comes_first(failed: Run, tmp_path: Path) -> None:
    changed: list[PlanLog] = []

    def put(uri: str, data: bytes) -> bool:
        if not changed:
            (tmp_path / "in" / "e.png").write_bytes(b"another")
            changed.append(start_run(tmp_path)[1])
        return storage.put_if_absent(uri, data)

    log = _retry(failed, put=put)
    listed = [keys_of(failed, ref) for ref in pending_chunks(log)]
    assert listed[:2] == [[("e.png", 0)], [("a.png", 0)]]
    commit_all(failed, log)
    assert _audit(failed)[0] == []


class Drivers:
    """Jobs that retry, plan and commit in any order; some begin, and come to their end, while another is about to put
    its plan."""

    def __init__(self, root: Path, moves: list[tuple[str, int]]) -> None:
        self.root, self.moves, self.versions = root, iter(moves), count(2)
        write_images(root / "in", "a.png", "b.png", "c.png")
        write_table(root / "in" / "t.parquet", 4)
        self.run, _ = start_run(root, rows=2)

    def go_on(self) -> bool:
        kind, number = next(self.moves, ("", 0))
        if kind == "retry":
            plan_retries(read_log(self.run.uri), PASSING_STATUSES, ChunkConfig(rows=1 + number % 3), self._put)
        elif kind == "extend":
            extend_plan(self.run.uri, self.run.input, ChunkConfig(rows=1 + number % 3), Columns(), self._put)
        elif kind == "change":
            path = self.root / "in" / ("b.png", "t.parquet")[number % 2]
            os.utime(path, ns=(0, next(self.versions)))
        elif kind == "restore":
            os.utime(self.root / "in" / ("b.png", "t.parquet")[number % 2], ns=(0, 2 + number))
        elif kind == "commit":
            pending = list(pending_chunks(read_log(self.run.uri)))
            if pending:
                ref = pending[number % len(pending)]
                statuses = cycle([("ok", "crash", "corrupt", "timeout")[number % 4], "crash", "ok"][number % 3 :])
                found = zip(keys_of(self.run, ref), statuses, strict=False)
                commit_rows(self.run, ref, {key: status for key, status in found if status != "ok"})
        return bool(kind)

    def _put(self, uri: str, data: bytes) -> bool:
        self.go_on()
        return storage.put_if_absent(uri, data)


_MOVES = st.tuples(
    st.sampled_from(["retry", "retry", "commit", "commit", "commit", "extend", "change", "restore"]), st.integers(0, 9)
)


@given(moves=st.lists(_MOVES, min_size=6, max_size=24))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_only_what_is_done_and_failed_is_ever_planned_again(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]]
) -> None:
    drivers = Drivers(tmp_path_factory.mktemp("retry"), moves)
    while drivers.go_on():
        pass
    run, newest = drivers.run, read_log(drivers.run.uri).newest
    _, returns = find_kinds(run.uri, range(1, newest + 1))
    ended: dict[tuple[str, str, int], list[str | None]] = {}
    for ref, is_done in read_states(run.uri, newest):
        (rows,) = read_rows(run.uri, [ref.chunk_id]) if is_done else ({},)
        for piece in read_chunk(run.uri, ref):
            for row in range(piece.first_row, piece.first_row + piece.n_rows):
                if ref.plan in returns:
                    ended[piece.path, piece.version, row] = []  # whatever became of it before
                ended.setdefault((piece.path, piece.version, row), []).append(rows.get((piece.path, row)))
    for found in ended.values():
        assert set(found[:-1]) <= set(PASSING_STATUSES), "in the order of their plans, but for the last"
    assert audit(str(Path(run.uri).parent)).findings == []


# ------------------------------------------------------------------------------------------------ formats and the audit


def test_ids_of_retries_are_their_own() -> None:
    """By hand: sha256 of the canonical identity, whose format is stored in every plan."""
    chunk = [Piece("a.png", "1-2", "image", 0, 1, 1)]
    assert chunk_id(chunk, 7) == storage.digest(b'[["retry",7],["a.png","1-2","image",0,1]]')[:32]
    assert len({chunk_id(chunk), chunk_id(chunk, 7), chunk_id(chunk, 8)}) == 3


def test_a_plan_that_is_no_retry_is_stored_as_before(failed: Run) -> None:
    import pyarrow.parquet as pq

    marks = pq.read_metadata(plan_uri(failed.uri, 1)).metadata
    assert b"fcn_ray.kind" not in marks
    _retry(failed)
    assert pq.read_metadata(plan_uri(failed.uri, 2)).metadata[b"fcn_ray.kind"] == b"retry"


def _put_retry(run: Run, number: int, *chunks: list[Piece]) -> None:
    draft = PlanWriter(retry=number)
    for chunk in chunks:
        draft.add(chunk)
    assert storage.put_if_absent(plan_uri(run.uri, number), draft.finish())


def _piece(run: Run, path: str, first_row: int = 0, n_rows: int = 1, version: str = "") -> Piece:
    found = [piece for ref in _refs(run) for piece in read_chunk(run.uri, ref) if piece.path == path]
    return Piece(path, version or found[0].version, found[0].kind, first_row, n_rows, 1)


def _refs(run: Run) -> list:
    return [ref for ref, _ in plan.read_states(run.uri, 1)]


def test_the_audit_sees_retries_that_should_not_be(failed: Run) -> None:
    a, t = _piece(failed, "a.png"), _piece(failed, "t.parquet", 2, 2)
    faults: dict[str, tuple[list[list[Piece]], str]] = {
        "another version": ([[_piece(failed, "a.png", version="1-1")]], "no plan before"),
        "another row": ([[_piece(failed, "t.parquet", 9, 2)]], "no plan before"),
        "twice": ([[a], [a, _piece(failed, "c.png")]], "again twice"),
        "row twice": ([[t], [_piece(failed, "t.parquet", 3, 1)]], "again twice"),
        "right": ([[a], [t]], ""),
    }
    for name, (chunks, message) in faults.items():
        _put_retry(failed, 2, *chunks)
        found = audit(str(Path(failed.uri).parent)).findings
        assert [finding.kind in {"retry", "twice"} and message in finding.message for finding in found] == (
            [True] if message else []
        ), (name, found)
        os.remove(plan_uri(failed.uri, 2))


def test_a_retry_before_its_rows_were_planned_is_found(failed: Run) -> None:
    """Plans are exchanged: the retry has number 1."""
    data = Path(plan_uri(failed.uri, 1)).read_bytes()
    a = _piece(failed, "a.png")
    Path(plan_uri(failed.uri, 2)).write_bytes(data)
    os.remove(plan_uri(failed.uri, 1))
    _put_retry(failed, 1, [a])
    assert "retry" in {finding.kind for finding in audit(str(Path(failed.uri).parent)).findings}


def test_a_plan_of_another_kind_is_found(failed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_ray.tables.planfile._RETRY", b"later")
    _put_retry(failed, 2, [_piece(failed, "a.png")])
    assert "is of the unknown kind b'later'" in {
        found.message for found in audit(str(Path(failed.uri).parent)).findings
    }


def test_a_row_that_is_in_no_plan_stops_the_retry(failed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_ray.tables.planfile.read_pieces", lambda run, ref: [Piece("z.png", "1", "image", 0, 1, 1)])
    with pytest.raises(AuditError, match=r"has the row \('a.png', 0\), which is not in its plan"):
        list(find_failed(failed.uri, 1, PASSING_STATUSES, Superseded()))


# ------------------------------------------------------------------------------------------------------------ counting


def test_current_rows_are_counted(failed: Run) -> None:
    """By hand: of 15 rows 7 are bad; one more try mends 4 of 5, and `c.png`, now another, is right."""
    log = _retry(failed)
    manifest = finish(failed, log, commit_all(failed, log, {("e.png", 0): "crash"}))
    assert (manifest.rows, manifest.bad_rows) == (20, 8), "as stored"
    superseded = find_superseded(failed.uri, log.newest)
    counts = count_current(failed.uri, manifest.statuses, manifest.read_published(), superseded)
    assert counts == {"corrupt": 1, "crash": 1, "null": 1, "ok": 12}


def test_what_manifests_say_is_not_read_again(failed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one status are counted from the manifest alone."""
    (tmp_path / "in" / "d.png").write_bytes(b"another")
    _, log = start_run(tmp_path)
    manifest = finish(failed, log, commit_all(failed, log))
    published, superseded = manifest.read_published(), find_superseded(failed.uri, log.newest)
    mixed = {name: statuses for name, statuses in published.items() if name in superseded.rows}
    assert list(mixed.values()) == [{"ok": 1, "timeout": 1}]
    counts = count_current(failed.uri, manifest.statuses, published, superseded)
    assert sum(counts.values()) == 15
    monkeypatch.setattr("fcn_ray.tables.statuses._read_rows", lambda *_: pytest.fail("it says all"))
    said = {name: {"ok": 2} for name in superseded.rows}
    assert count_current(failed.uri, {"ok": 3}, said, superseded) == {"ok": 2}
