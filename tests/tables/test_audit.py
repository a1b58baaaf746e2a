"""The audit finds every kind of damage, each by the check that is meant for it, and nothing in a run that is right."""

import ast
import importlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.errors import ConfigError
from fcn_ray.labels import LabelSet
from fcn_ray.tables import audit as audit_module
from fcn_ray.tables.audit import audit
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.maskfile import encode
from fcn_ray.tables.plan import pending_chunks
from fcn_ray.tables.runs import Run, open_run
from tests.tables.making import (
    HEIGHT,
    IDENTITY,
    LABELS,
    WIDTH,
    commit_pending,
    finished_run,
    png,
    result_rows,
    start_run,
    write_images,
    write_table,
)

Damage = Callable[[Run], Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An input with four images and a table."""
    write_images(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    write_table(tmp_path / "in" / "t.parquet", 4)
    _freeze(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs that tests copy: `committed` has every chunk but no manifest, `finished` two plans with their manifests."""
    root = tmp_path_factory.mktemp("made")
    write_images(root / "in", "a.png", "b.png", "c.png", "d.png")
    write_table(root / "in" / "t.parquet", 4)
    _freeze(root)
    run, log = start_run(root)
    list(commit_pending(run, log))
    shutil.copytree(root / "out", root / "committed")
    finished_run(root)
    write_images(root / "in", "e.png")
    _freeze(root)
    finished = finished_run(root)
    return {"finished": finished, "committed": replace(run, uri=f"{root}/committed/run={run.run_id}")}


def _freeze(root: Path) -> None:
    """The same versions, so the same chunk ids, at every run of the tests."""
    for path in (root / "in").iterdir():
        os.utime(path, ns=(0, 1))


@pytest.fixture
def finished(made: dict[str, Run], tmp_path: Path) -> Run:
    return _copy_run(made["finished"], tmp_path)


@pytest.fixture
def committed(made: dict[str, Run], tmp_path: Path) -> Run:
    """The rows are the only witnesses: there is no manifest with digests."""
    return _copy_run(made["committed"], tmp_path)


def _copy_run(run: Run, root: Path) -> Run:
    folder = Path(run.uri)
    shutil.copytree(folder, root / "out" / folder.name)
    return replace(run, uri=str(root / "out" / folder.name))


def _kinds(run: Run) -> set[str]:
    return {finding.kind for finding in audit(str(Path(run.uri).parent)).findings}


# ------------------------------------------------------------------------------------------------------ what is right


def test_a_finished_run_is_clean(finished: Run) -> None:
    report = audit(str(Path(finished.uri).parent))
    assert (report.ok, report.incomplete, report.findings) == (True, False, [])
    assert (report.runs, report.chunks, report.checked, report.statuses) == (1, 5, 5, {"ok": 9})
    assert list(report.lines()) == [
        f"audit of {Path(finished.uri).parent}: 1 runs, 5 of 5 chunks there, 9 ok",
        "ok: every image of the plan has exactly one whole, unchanged result row",
    ]


def test_bad_images_are_no_fault(root: Path) -> None:
    run, log = start_run(root)
    bad: dict[str, list[Any]] = {name: [None] for name in ("mask", "height", "width", "class_pixels")}
    for ref in pending_chunks(log):
        changes = {name: cells * ref.n_rows for name, cells in bad.items()}
        changes |= {"status": ["corrupt"] * ref.n_rows, "error": ["no"] * ref.n_rows}
        commit_chunk(run, result_rows(run, ref, Columns(), **changes))
    report = audit(f"{root}/out")
    assert (report.findings, report.statuses) == ([], {"corrupt": 8})


def test_ignored_pixels_are_no_fault(root: Path) -> None:
    run, log = start_run(root)
    void = {"mask": {"bytes": png(255, "L"), "path": None}, "class_pixels": [0, 0, 0]}
    for ref in pending_chunks(log):
        cells = {name: [cell] * ref.n_rows for name, cell in void.items()}
        commit_chunk(run, result_rows(run, ref, Columns(), **cells))
    assert audit(f"{root}/out").findings == []


def test_unfinished_is_not_broken(root: Path) -> None:
    run, log = start_run(root)
    next(commit_pending(run, log))
    (Path(run.uri) / "masks" / ".tmp-x.parquet-0123").write_bytes(b"PAR")
    report = audit(f"{root}/out")
    assert (report.ok, report.incomplete, report.findings, report.leftovers) == (False, True, [], 1)
    assert (report.checked, report.chunks) == (1, 4)
    assert list(report.lines())[1:] == [
        f"incomplete: run={run.run_id}: 3 chunks are pending",
        "1 temporary files of killed writers (.tmp-*): harmless, may be deleted",
    ]


def test_committed_but_not_finished_is_incomplete(committed: Run) -> None:
    report = audit(str(Path(committed.uri).parent))
    assert report.unfinished == [f"run={committed.run_id}: plan 1 has no manifest yet"]


@pytest.mark.parametrize("text", [None, "older"])
def test_a_success_that_lags_is_incomplete(finished: Run, text: str | None) -> None:
    success = Path(finished.uri, "_SUCCESS")
    if text is None:
        success.unlink()
    else:
        older = Path(finished.uri, "manifests/000001.json").read_bytes()
        totals = {key: json.loads(older)[key] for key in ("plan", "chunks", "rows", "statuses")}
        success.write_text(json.dumps({"manifest": "manifests/000001.json", "sha256": _sha256(older), **totals}))
    report = audit(str(Path(finished.uri).parent))
    assert (report.incomplete, report.findings) == (True, [])
    assert "_SUCCESS" in report.unfinished[0]


def test_every_run_of_a_folder_is_audited(finished: Run) -> None:
    output = Path(finished.uri).parent
    open_run(str(output), finished.input, {**IDENTITY, "model": "beef"}, LABELS)
    (output / f"run={'0' * 16}").mkdir()  # of a job that was killed before its first file
    report = audit(str(output))
    assert (report.runs, len(report.unfinished), report.findings) == (2, 1, [])
    assert audit(finished.uri).ok, "and one of them by itself"
    assert audit(f"{finished.uri}/").runs == 1


@pytest.mark.parametrize("name", ["in", "nowhere"])
def test_a_folder_without_runs(root: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="holds no run to audit"):
        audit(f"{root}/{name}")


# --------------------------------------------------------------------------------------- damage to files and the plan


def _sha256(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()


def _mask_files(run: Run) -> list[Path]:
    """Those with most rows first."""
    return sorted(Path(run.uri, "masks").iterdir(), key=lambda path: (-pq.read_metadata(path).num_rows, path))


def _flip_bit(path: Path, at: int = 60) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _edit_json(name: str, change: Callable[[dict], Any]) -> Damage:
    def damage(run: Run) -> None:
        path = Path(run.uri, name)
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return damage


def _edit_plan(change: Callable[[list[dict]], Any], number: int = 1, honest: bool = True) -> Damage:
    """Change the rows of a plan; the totals in its metadata follow when `honest`."""

    def damage(run: Run) -> None:
        path = Path(run.uri, f"plans/{number:06}.parquet")
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(rows)
        metadata = pq.read_metadata(path).metadata
        if honest:
            chunks = sum(1 for _ in groupby(rows, key=itemgetter("chunk_id")))
            metadata = {"fcn_ray.chunks": str(chunks), "fcn_ray.rows": str(sum(row["n_rows"] for row in rows))}
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema.with_metadata(metadata)), path)

    return damage


def _edit_plan_file(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(run: Run) -> None:
        path = Path(run.uri, "plans/000001.parquet")
        metadata = pq.read_metadata(path).metadata
        kept = {key: metadata[key] for key in (b"fcn_ray.chunks", b"fcn_ray.rows")}
        pq.write_table(change(pq.read_table(path).replace_schema_metadata(kept)), path)

    return damage


def _with_binary(table: pa.Table, name: str) -> pa.Schema:
    return table.schema.set(table.column_names.index(name), pa.field(name, pa.binary()))


def _copy(source: str, target: str) -> Damage:
    def damage(run: Run) -> None:
        Path(run.uri, target).write_bytes(next(Path(run.uri).glob(source)).read_bytes())

    return damage


def _plan_rows(run: Run) -> list[dict]:
    rows: list[dict] = pq.read_table(Path(run.uri, "plans/000001.parquet")).to_pylist()
    return rows


def _same_version_in_both_plans(run: Run) -> None:
    first = _plan_rows(run)[0]

    def edit(rows: list[dict]) -> None:
        rows[0] |= {"path": first["path"], "version": first["version"]}
        _rewrite_ids(rows)

    _edit_plan(edit, number=2)(run)


def _same_chunk_in_both_plans(run: Run) -> None:
    _edit_plan(lambda rows: rows.append(_plan_rows(run)[-1]), number=2)(run)


def _version_split_over_plans(run: Run) -> None:
    """Each row is in one chunk, but a later plan covers what an earlier one had left."""
    last = _plan_rows(run)[-1]
    _edit_plan(lambda rows: rows.pop())(run)
    _edit_plan(lambda rows: rows.append(last), number=2)(run)


def _rewrite_ids(rows: list[dict]) -> None:
    """Right ids for whatever the rows say now, one row a chunk."""
    for row in rows:
        identity = [[row["path"], row["version"], row["kind"], row["first_row"], row["n_rows"]]]
        row["chunk_id"] = _sha256(json.dumps(identity, separators=(",", ":")).encode())[:32]


def _edit_table_rows(**change: Any) -> Damage:
    def edit(rows: list[dict]) -> None:
        rows[-1].update(change)
        _rewrite_ids(rows)

    return _edit_plan(edit)


def _as_tar(*places: tuple[int, int]) -> Damage:
    """The table's two pieces, which begin with rows 0 and 3, as those of a tar."""

    def edit(rows: list[dict]) -> None:
        for row, (first, offset) in zip(rows[-2:], places, strict=True):
            row.update(kind="tar", offset=offset, offset_row=first)
        _rewrite_ids(rows)

    return _edit_plan(edit)


def _list_in_first_manifest(part: slice) -> Damage:
    """The manifest of the first plan, which has four chunks, with some of them and of the second's, in this order."""

    def damage(run: Run) -> None:
        first, second = (json.loads(Path(run.uri, f"manifests/00000{i}.json").read_text())["objects"] for i in (1, 2))
        later = [item for item in second if item not in first]
        assert (len(first), len(later)) == (4, 1)
        objects = sorted([*first, *later][part], key=itemgetter("name"))
        rows = sum(item["rows"] for item in objects)
        totals = {"chunks": len(objects), "rows": rows, "statuses": {"ok": rows}, "objects": objects}
        _edit_json("manifests/000001.json", lambda manifest: manifest.update(totals))(run)

    return damage


def _edit_only_manifest(**cells: Any) -> Damage:
    """Change an object of the newest manifest, when no other file contradicts that."""

    def damage(run: Run) -> None:
        for name in ("manifests/000001.json", "_SUCCESS"):
            Path(run.uri, name).unlink()
        _edit_json("manifests/000002.json", lambda manifest: _edit_object(manifest["objects"][0], cells))(run)

    return damage


def _edit_object(item: dict, cells: dict[str, Any]) -> None:
    item.update({name: cell(item[name]) if callable(cell) else cell for name, cell in cells.items()})


FILE_DAMAGE: dict[str, tuple[Damage, set[str]]] = {
    "bit flipped in a mask file": (lambda run: _flip_bit(_mask_files(run)[0]), {"digest", "unreadable"}),
    "mask file cut off": (lambda run: _mask_files(run)[0].write_bytes(b"PAR1"), {"digest", "unreadable"}),
    "mask file deleted": (lambda run: _mask_files(run)[0].unlink(), {"missing"}),
    "mask file of another chunk": (
        lambda run: _mask_files(run)[0].write_bytes(_mask_files(run)[1].read_bytes()),
        {"digest", "metadata", "key"},
    ),
    "mask file outside the plan": (_copy("masks/*", f"masks/{'0' * 32}.parquet"), {"stray"}),
    "other file in masks": (_copy("masks/*", "masks/part-0.parquet"), {"name"}),
    "other file in plans": (_copy("run.json", "plans/notes.json"), {"name"}),
    "plan deleted": (lambda run: Path(run.uri, "plans/000001.parquet").unlink(), {"digest", "plan", "stray"}),
    "plan cut off": (lambda run: Path(run.uri, "plans/000001.parquet").write_bytes(b"PAR1"), {"digest", "plan"}),
    "bit flipped in a plan": (lambda run: _flip_bit(Path(run.uri, "plans/000001.parquet")), {"digest", "plan"}),
    "plan copied": (_copy("plans/000001.parquet", "plans/000003.parquet"), {"twice", "origin"}),
    "path changed in a plan": (_edit_plan(lambda rows: rows[0].update(path="0.png")), {"digest", "chunk_id"}),
    "input version in two plans": (_same_version_in_both_plans, {"digest", "twice", "missing", "stray", "manifest"}),
    "input version split over plans": (_version_split_over_plans, {"digest", "twice", "origin", "stray"}),
    "chunk in two plans": (_same_chunk_in_both_plans, {"digest", "twice", "origin"}),
    "run.json deleted": (lambda run: Path(run.uri, "run.json").unlink(), {"digest", "run"}),
    "run.json torn": (lambda run: Path(run.uri, "run.json").write_text("{"), {"digest", "run"}),
    "identity changed": (_edit_json("run.json", lambda run: run["identity"].update(model="beef")), {"digest", "run"}),
    "run id changed": (_edit_json("run.json", lambda run: run.update(run="0" * 16)), {"digest", "run"}),
    "run folder renamed": (
        lambda run: Path(run.uri).rename(Path(run.uri).with_name(f"run={'0' * 16}")),
        {"run", "manifest", "metadata", "origin"},
    ),
    "digest changed in a manifest": (
        _edit_json("manifests/000002.json", lambda m: m["objects"][0].update(sha256="0")),
        {"manifest", "digest", "success"},
    ),
    "size changed in the only manifest": (_edit_only_manifest(size=1), {"digest"}),
    "rows changed in the only manifest": (_edit_only_manifest(rows=9), {"digest", "manifest"}),
    "temporary name in a manifest": (_edit_only_manifest(name=lambda name: f"{name}.tmp"), {"digest", "manifest"}),
    "object left out of the newest manifest": (
        _edit_json("manifests/000002.json", lambda m: m["objects"].pop()),
        {"manifest", "digest", "success"},
    ),
    "object added to a manifest": (
        _edit_json("manifests/000002.json", lambda m: m["objects"].append(m["objects"][0] | {"name": "masks/x"})),
        {"manifest", "stray", "success"},
    ),
    "object left out of the first manifest, which adds up": (_list_in_first_manifest(slice(1, 4)), {"manifest"}),
    "object of a later plan in the first manifest, which adds up": (_list_in_first_manifest(slice(0, 5)), {"stray"}),
    "object twice in a manifest": (
        _edit_json("manifests/000001.json", lambda m: m["objects"].append(m["objects"][-1])),
        {"manifest"},
    ),
    "totals changed in a manifest": (_edit_json("manifests/000001.json", lambda m: m.update(rows=1)), {"manifest"}),
    "rows changed in a manifest": (
        _edit_json("manifests/000001.json", lambda m: m["objects"][0].update(rows=9)),
        {"manifest"},
    ),
    "manifest of another run": (_edit_json("manifests/000001.json", lambda m: m.update(run="x")), {"manifest"}),
    "manifest torn": (lambda run: Path(run.uri, "manifests/000001.json").write_text("{"), {"manifest"}),
    "manifest replaced": (
        _edit_json("manifests/000001.json", lambda m: m["objects"][0].update(sha256="0")),
        {"manifest"},
    ),
    "file left out of a manifest": (
        _edit_json("manifests/000001.json", lambda m: m["files"].pop()),
        {"manifest"},
    ),
    "input changed in run.json": (_edit_json("run.json", lambda run: run.update(input="other")), {"digest"}),
    "totals changed in success": (_edit_json("_SUCCESS", lambda s: s.update(rows=1)), {"success"}),
    "success names another digest": (_edit_json("_SUCCESS", lambda s: s.update(sha256="0")), {"success"}),
    "success names nothing": (_edit_json("_SUCCESS", lambda s: s.update(manifest="gone.json")), {"success"}),
    "success torn": (lambda run: Path(run.uri, "_SUCCESS").write_text("{"), {"success"}),
}


@pytest.mark.parametrize("name", FILE_DAMAGE)
def test_damage_to_files_is_found(finished: Run, name: str) -> None:
    damage, kinds = FILE_DAMAGE[name]
    damage(finished)
    assert _kinds(finished) == kinds


PLAN_DAMAGE: dict[str, tuple[Damage, set[str]]] = {
    "rows missing between chunks": (_edit_table_rows(first_row=4, n_rows=1), {"twice", "stray"}),
    "rows in two chunks": (_edit_table_rows(first_row=2, n_rows=2), {"twice", "stray"}),
    "rows from the middle only": (_edit_plan(lambda rows: rows.pop(-2)), {"twice", "stray"}),
    "an image of two rows": (_edit_table_rows(path="u.png", kind="image", first_row=0, n_rows=2), {"twice", "stray"}),
    "an unknown kind": (_edit_table_rows(kind="zip"), {"kind", "stray"}),
    "an input of an unknown kind": (_edit_table_rows(path="u.zip", kind="zip", first_row=0), {"kind", "stray"}),
    "a table with an offset": (_edit_table_rows(offset=512), {"offset", "stray"}),
    "a tar out of order": (_as_tar((0, 1024), (3, 512)), {"offset", "stray"}),
    "a tar between blocks": (_as_tar((0, 512), (3, 1000)), {"offset", "stray"}),
    "a tar before its begin": (_as_tar((0, -512), (3, 512)), {"offset", "stray"}),
    "a tar whose rows begin too late": (_as_tar((0, 0), (4, 512)), {"offset", "stray"}),
    "a tar with two places of a row": (_as_tar((0, 0), (0, 512)), {"offset", "stray"}),
    "a tar as it is": (_as_tar((0, 0), (3, 512)), {"stray"}),
    "a tar that is read from its begin": (_as_tar((0, 0), (0, 0)), {"stray"}),
    "a chunk of no rows": (_edit_table_rows(path="u.png", first_row=0, n_rows=0), {"twice", "stray"}),
    "not sorted": (_edit_plan(lambda rows: (rows.reverse(), _rewrite_ids(rows))), {"plan", "stray"}),
    "chunk left out": (_edit_plan(lambda rows: rows.pop()), {"stray"}),
    "columns of other types": (_edit_plan_file(lambda table: table.cast(_with_binary(table, "path"))), {"plan"}),
    "metadata of others": (
        _edit_plan_file(lambda table: table.replace_schema_metadata({**table.schema.metadata, "fcn_ray.sea": "l"})),
        {"plan"},
    ),
    "totals that do not add up": (_edit_plan(lambda rows: rows.pop(), honest=False), {"plan"}),
}


# ----------------------------------------------------------------------------------------------------- damage to rows


def _edit_rows(**cells: Any) -> Damage:
    """Other values in the second row of one mask file; its own digest is right again."""

    def damage(run: Run) -> None:
        path = _mask_files(run)[0]
        table = pq.read_table(path)
        rows = table.to_pylist()
        rows[-1].update(cells)
        _write(path, pa.Table.from_pylist(rows, schema=table.schema))

    return damage


def _edit_file(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(run: Run) -> None:
        path = _mask_files(run)[0]
        _write(path, change(pq.read_table(path)))

    return damage


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, use_dictionary=False, compression="none", write_page_checksum=True)


def _mask(data: bytes) -> dict[str, Any]:
    return {"mask": {"bytes": data, "path": None}}


def _without_checksum(data: bytes) -> bytes:
    """A PNG whose pixels decode but whose checksum is wrong."""
    at = data.index(b"IDAT") + 4 + int.from_bytes(data[data.index(b"IDAT") - 4 : data.index(b"IDAT")], "big")
    return data[:at] + bytes(4) + data[at + 4 :]


BAD = {"status": "corrupt", "mask": None, "error": "why"}

ROW_DAMAGE: dict[str, tuple[Damage, str]] = {
    "mask too small": (_edit_rows(**_mask(png(1, "L", (WIDTH, HEIGHT - 1)))), "size"),
    "height and width swapped": (_edit_rows(height=WIDTH, width=HEIGHT), "size"),
    "height missing": (_edit_rows(height=None), "size"),
    "id outside the label set": (_edit_rows(**_mask(png(3, "L")), class_pixels=[0, 0, 0]), "ids"),
    "counted wrong": (_edit_rows(class_pixels=[1, HEIGHT * WIDTH - 1, 0]), "counts"),
    "not counted": (_edit_rows(class_pixels=None), "counts"),
    "counts of other classes": (_edit_rows(class_pixels=[0, HEIGHT * WIDTH]), "counts"),
    "colour mask": (_edit_rows(**_mask(png(1, "RGB"))), "mask"),
    "palette mask": (_edit_rows(**_mask(png(1, "P"))), "mask"),
    "16-bit mask": (_edit_rows(**_mask(png(1, "I;16"))), "mask"),
    "no PNG": (_edit_rows(**_mask(b"x" * 100)), "mask"),
    "empty mask": (_edit_rows(**_mask(b"")), "mask"),
    "mask cut off": (_edit_rows(**_mask(png(1, "L")[:-20])), "mask"),
    "mask with a wrong checksum": (_edit_rows(**_mask(_without_checksum(png(1, "L")))), "mask"),
    "ok without a mask": (_edit_rows(mask=None), "status"),
    "ok with an error": (_edit_rows(error="but"), "status"),
    "unknown status": (_edit_rows(**BAD | {"status": "odd"}), "status"),
    "bad with a mask": (_edit_rows(status="corrupt", error="why"), "status"),
    "bad without an error": (_edit_rows(**BAD | {"error": None}), "status"),
    "error too long": (_edit_rows(**BAD | {"error": "x" * 501}), "status"),
    "row of another image": (_edit_rows(path="z.png"), "key"),
    "row of another row": (_edit_rows(row=99), "key"),
    "row of another run": (_edit_rows(run_id="0" * 16), "origin"),
    "row of another plan": (_edit_rows(plan=2), "origin"),
    "row of another model": (_edit_rows(model_digest="beef"), "origin"),
    "column missing": (_edit_file(lambda table: table.drop_columns(["flags", "error"])), "columns"),
    "column of another type": (
        _edit_file(lambda table: table.set_column(table.column_names.index("row"), "row", [["0"] * len(table)])),
        "columns",
    ),
    "rows swapped": (_edit_file(lambda table: table.take([1, 0, *range(2, len(table))])), "key"),
    "row lost": (_edit_file(lambda table: table.slice(0, len(table) - 1)), "rows"),
    "row added": (_edit_file(lambda table: pa.concat_tables([table, table.slice(0, 1)])), "rows"),
    "metadata of others": (
        _edit_file(lambda table: table.replace_schema_metadata({**table.schema.metadata, "fcn_ray.sea": "l"})),
        "metadata",
    ),
    "metadata lost": (_edit_file(lambda table: table.replace_schema_metadata({})), "metadata"),
    "bit flipped in a mask": (lambda run: _flip_bit_in_mask(_mask_files(run)[0]), "unreadable"),
}


def _flip_bit_in_mask(path: Path) -> None:
    _flip_bit(path, path.read_bytes().index(png(1, "L")) + 5)


@pytest.mark.parametrize("name", ROW_DAMAGE)
def test_damage_to_rows_is_found(committed: Run, name: str) -> None:
    damage, kind = ROW_DAMAGE[name]
    damage(committed)
    assert _kinds(committed) == {kind}


def test_a_mask_file_that_was_written_again_is_found(finished: Run) -> None:
    """Whole and right in itself, and as many rows by status as before: only the digest of the first tells."""
    _edit_rows(**_mask(png(2, "L")), class_pixels=[0, 0, HEIGHT * WIDTH])(finished)
    assert _kinds(finished) == {"digest"}


@pytest.mark.parametrize("name", PLAN_DAMAGE)
def test_damage_to_a_plan_is_found(committed: Run, name: str) -> None:
    damage, kinds = PLAN_DAMAGE[name]
    damage(committed)
    assert _kinds(committed) == kinds


def test_chunks_of_different_models_are_found(committed: Run) -> None:
    path = _mask_files(committed)[1]
    table = pq.read_table(path)
    digests = pa.array(["beef"] * len(table))
    _write(path, table.set_column(table.column_names.index("model_digest"), "model_digest", digests))
    assert _kinds(committed) == {"origin"}


def test_the_model_of_all_rows_is_that_of_the_run(root: Path) -> None:
    run, log = start_run(root)
    for ref in pending_chunks(log):
        commit_chunk(run, result_rows(run, ref, Columns(), model_digest=["beef"] * ref.n_rows))
    assert _kinds(run) == {"origin"}


def test_the_number_of_findings_is_bounded(committed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MAX_FINDINGS", 2)
    for path in _mask_files(committed):
        path.write_bytes(b"")
    report = audit(str(Path(committed.uri).parent))
    assert (len(report.findings), report.n_findings) == (2, 4)
    assert "... and 2 more" in list(report.lines())


def test_masks_larger_than_pillows_limit_are_read(committed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1)
    assert _kinds(committed) == set()


def test_a_mask_file_of_another_label_set_is_judged_by_the_runs(root: Path) -> None:
    """The run says three classes; a writer that believes in five is found out."""
    run, log = start_run(root)
    (ref, *_) = pending_chunks(log)
    changes = {
        "mask": [{"bytes": png(4, "L"), "path": None}] * ref.n_rows,
        "class_pixels": [[0, 0, 0, 0, HEIGHT * WIDTH]] * ref.n_rows,
    }
    wrong = Run(run.uri, run.run_id, run.input, LabelSet.from_names(list("abcde")))
    data = encode(wrong, ref.chunk_id, result_rows(run, ref, Columns(), **changes))
    path = Path(run.uri, "masks", f"{ref.chunk_id}.parquet")
    path.parent.mkdir()
    path.write_bytes(data)
    assert _kinds(run) == {"ids", "counts"}


# ---------------------------------------------------------------------------------------------------- independence


def test_the_audit_shares_no_code_with_the_writer() -> None:
    allowed = {"fcn_ray", "fcn_ray.errors", "fcn_ray.failpoints", "fcn_ray.tables"}
    rooms = ("audit", "audit_ids", "audit_plans", "audit_rows", "audit_manifests")
    for room in rooms:
        module = importlib.import_module(f"fcn_ray.tables.{room}")
        for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fcn_ray"):
                names = {alias.name for alias in node.names}
                ours = {f"fcn_ray.tables.{other}" for other in rooms}
                measuring = {"fcn_ray.tables.audit_source"} if room == "audit" else set()  # it reads the input alone
                assert node.module in allowed | ours | measuring
                assert node.module != "fcn_ray.tables" or names == {"schema"}
                assert node.module != "fcn_ray" or names == {"storage"}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = (node.value.id, node.attr)
                assert used[0] != "schema" or node.attr.isupper(), f"{used}: constants only"
                assert used[0] != "storage" or node.attr in _READING, f"{used}: reading only"


_READING = {"Skipped", "is_file", "join", "list_files", "list_folders", "open_file", "read_bytes"}
