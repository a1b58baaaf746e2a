"""Masks against the images that they were made of: whatever kind of input holds them, and whatever became of it."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.tables import audit_source, sources
from fcn_ray.tables.audit import AuditReport, audit
from fcn_ray.tables.audit_plans import PlanRow
from fcn_ray.tables.audit_rows import Labelled
from fcn_ray.tables.audit_source import Sources
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import extend_plan, pending_chunks
from fcn_ray.tables.runs import open_run
from tests.tables.archives import header, padded, tar
from tests.tables.making import HEIGHT, IDENTITY, LABELS, WIDTH, png, result_rows, write_images, write_table

PICTURE = png(1)
WRONG = png(1, size=(WIDTH + 1, HEIGHT))


def _run(where: str, columns: Columns | None = None, rows: int = 3, **changes: Any) -> Callable[..., AuditReport]:
    """Label an input, each mask HEIGHT x WIDTH; its audit against the source."""
    columns = columns or Columns()
    output = f"{where.removeprefix('@').rpartition('/in')[0]}/out"
    identity = IDENTITY | {"columns": {"image": columns.image, "id": None, "carry": "plain"}}
    run = open_run(output, where, identity, LABELS)
    log = extend_plan(run.uri, run.input, ChunkConfig(rows=rows), columns)
    for ref in pending_chunks(log):
        cells = {name: [cell] * ref.n_rows for name, cell in changes.items()}
        commit_chunk(run, result_rows(run, ref, columns, **cells))
    finish(run, log)
    assert audit(output).ok, "by itself it is whole"
    return lambda: audit(output, source=True)


def _encode(kind: str, size: tuple[int, int], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, exif=exif)
    return file.getvalue()


def _seen(report: AuditReport) -> tuple[int, int | None, int | None]:
    return report.n_findings, report.compared, report.others


# ------------------------------------------------------------------------------------------------------------ sizes


def test_masks_as_large_as_their_images_are_right(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b/c.png", "d.png", "e.png")
    report = _run(f"{tmp_path}/in")()
    assert (report.ok, *_seen(report)) == (True, 0, 4, 0)
    assert "4 images measured in the input; 0 changed, are gone, or cannot be told" in list(report.lines())
    assert "measured" not in "".join(audit(f"{tmp_path}/out").lines())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_image(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(_encode(kind, stored, orientation))
    (tmp_path / "in/b.jpg").write_bytes(_encode(kind, stored[::-1], orientation))
    report = _run(f"{tmp_path}/in")()
    assert _seen(report) == (1, 2, 0)
    (found,) = report.findings
    assert found.kind == "source"
    assert found.message == "row 1: its image 'b.jpg' row 0 is (4, 3), the row says (3, 4) (height, width)"


def test_a_gif_is_as_large_as_its_first_frame_makes_it(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("P", (WIDTH, HEIGHT)).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = bytes((1, 0, 1, 0))  # a screen of one pixel
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.gif").write_bytes(data)
    assert _seen(_run(f"{tmp_path}/in")()) == (0, 1, 0)


def test_images_without_a_mask_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", "a.png")
    write_table(tmp_path / "in" / "t.parquet", 2, image=[PICTURE] * 2)
    bad = {"mask": None, "height": None, "width": None, "class_pixels": None, "status": "timeout", "error": "slow"}
    again = _run(f"{tmp_path}/in", **bad)
    monkeypatch.setattr(storage, "fetch", lambda *_: pytest.fail("the image is read"))
    monkeypatch.setattr(audit_source, "_open_stream", lambda *_: pytest.fail("the table is read"))
    assert _seen(again()) == (0, 0, 0)


# ----------------------------------------------------------------------------------------------------------- inputs


def _cells(images: list[bytes]) -> dict[str, pa.Array]:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return {
        "binary": pa.array(images, pa.binary()),
        "large_binary": pa.array(images, pa.large_binary()),
        "binary_view": pa.array(images, pa.binary_view()),
        "dictionary": pa.array(images, pa.binary()).dictionary_encode(),
        "struct": pa.array([{"bytes": image, "path": None} for image in images], struct),
    }


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "dictionary", "struct"])
@pytest.mark.parametrize("group", [2, 100])
def test_tables_of_every_kind(tmp_path: Path, kind: str, group: int) -> None:
    """Seven rows in chunks of three, in one row group or in four; the sixth image has another size than its mask."""
    images = [PICTURE] * 5 + [WRONG, PICTURE]
    path = tmp_path / "in" / "t.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"name": ["x"] * 7, "picture": _cells(images)[kind]}), path, row_group_size=group)
    write_images(tmp_path / "in", "z.png")
    report = _run(f"{tmp_path}/in")()
    assert _seen(report) == (1, 8, 0)
    assert "its image 't.parquet' row 5 is (3, 5)" in report.findings[0].message


def test_a_null_image_has_no_size(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2, image=[PICTURE, None])
    assert _seen(_run(f"{tmp_path}/in")()) == (0, 1, 1)


def test_masks_are_no_images_unless_they_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2, image=[1, 2], mask=[WRONG] * 2, picture=[PICTURE] * 2)
    assert _seen(_run(f"{tmp_path}/in")()) == (0, 2, 0)


@pytest.mark.parametrize(("column", "findings"), [(None, 0), ("other", 2), ("mask", 2)])
def test_the_column_is_that_of_the_job(tmp_path: Path, column: str | None, findings: int) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2, image=[PICTURE] * 2, other=[WRONG] * 2, mask=[WRONG] * 2)
    assert _seen(_run(f"{tmp_path}/in", Columns(image=column))()) == (findings, 2, 0)


def test_a_retry_goes_back_in_its_table(tmp_path: Path) -> None:
    path = str(write_table(tmp_path / "t.parquet", 40, group=40, image=[PICTURE] * 39 + [WRONG]))
    opened = Sources(path, None, ())
    for first in (30, 3, 4):
        piece = PlanRow("t.parquet", storage.stat(path).version, first, 10, "parquet", "", 1)
        assert len(list(opened.check([piece], [Labelled(HEIGHT, WIDTH, None)] * 10))) == (first == 30)
    assert (opened.compared, opened.others) == (30, 0)


def test_tables_of_paths(tmp_path: Path) -> None:
    """Those whose file is another one now are not judged, nor those that lie where tables may not point to."""
    write_images(tmp_path / "in", *(f"images/{name}.png" for name in "abcd"))
    (tmp_path / "in/images/b.png").write_bytes(WRONG)
    paths = [f"images/{name}.png" for name in "abcd"]
    path = write_table(tmp_path / "in" / "t.parquet", 4, image=paths)
    again = _run(str(path))
    assert _seen(again()) == (1, 4, 0)
    (tmp_path / "in/images/b.png").write_bytes(PICTURE + b"changed")
    (tmp_path / "in/images/c.png").unlink()
    outside = write_images(tmp_path / "elsewhere", "d.png") / "d.png"
    _keep_time(tmp_path / "in/images/d.png", lambda image: (image.unlink(), image.symlink_to(outside)))
    assert _seen(again()) == (0, 1, 3)


@pytest.mark.parametrize(("allowed", "compared"), [((), 0), (("elsewhere",), 1)])
def test_paths_lead_where_the_job_let_them(tmp_path: Path, allowed: tuple[str, ...], compared: int) -> None:
    image = write_images(tmp_path / "elsewhere", "a.png") / "a.png"
    path = str(write_table(tmp_path / "in" / "t.parquet", 1, image=[str(image)]))
    opened = Sources(path, None, [f"{tmp_path}/{name}" for name in allowed])
    piece = PlanRow("t.parquet", storage.stat(path).version, 0, 1, "parquet", "", 1)
    assert list(opened.check([piece], [Labelled(HEIGHT, WIDTH, storage.stat(str(image)).version)])) == []
    assert (opened.compared, opened.others) == (compared, 1 - compared)


def test_paths_without_versions_cannot_be_told(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png")
    path = write_table(tmp_path / "in" / "t.parquet", 1, image=["a.png"])
    assert _seen(_run(str(path), Columns(carry="none"))()) == (0, 0, 1)


@pytest.mark.parametrize("kind", ["ustar", "gnu", "pax"])
def test_tars(tmp_path: Path, kind: str) -> None:
    """Other members, hidden ones and long names among them: in chunks of three, the sixth image is of another size."""
    members = []
    for number in range(7):
        key = f"{'long/' * 12}{number:04}"
        members += [(f"{key}.txt", b"a street"), (f"./.hidden/{key}.png", WRONG), (f"_part/{key}.png", WRONG)]
        members += [(f"./{key}.png", WRONG if number == 5 else PICTURE)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/t.tar").write_bytes(tar(members, kind))
    report = _run(f"{tmp_path}/in")()
    assert _seen(report) == (1, 7, 0)
    assert "its image 't.tar' row 5 is (3, 5)" in report.findings[0].message


def test_sparse_members_of_a_tar_are_no_rows(tmp_path: Path) -> None:
    first, sparse = header("a.png", len(PICTURE)) + padded(PICTURE), header("b.png", len(WRONG), b"S") + padded(WRONG)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/t.tar").write_bytes(first + sparse + tar([("c.png", PICTURE)]))
    assert _seen(_run(f"{tmp_path}/in")()) == (0, 2, 0)


def test_a_tar_has_the_same_images_for_both() -> None:
    assert set(audit_source._SUFFIXES) == set(sources.IMAGE_SUFFIXES)


def test_patterns_lists_and_single_files(tmp_path: Path) -> None:
    write_images(tmp_path / "in[1]", "a.png", "b/c.png", "b/d.png")
    (tmp_path / "in[1]/list.txt").write_text(f"a.png\n{tmp_path}/in[1]/b/c.png\n")
    for where, images in {
        f"{tmp_path}/in[1]": 3,
        f"{tmp_path}/in[[]1]/b/*.png": 2,
        f"@{tmp_path}/in[1]/list.txt": 2,
        f"{tmp_path}/in[1]/a.png": 1,
    }.items():
        report = _run_beside(where, tmp_path / str(len(list(tmp_path.iterdir()))))
        assert _seen(report) == (0, images, 0), where


def _run_beside(where: str, output: Path) -> AuditReport:
    run = open_run(str(output), where, IDENTITY, LABELS)
    log = extend_plan(run.uri, run.input, ChunkConfig(rows=3), Columns())
    for ref in pending_chunks(log):
        commit_chunk(run, result_rows(run, ref, Columns()))
    return audit(str(output), source=True)


# ---------------------------------------------------------------------------------------------- what became of them


def _keep_time(path: Path, change: Callable[[Path], Any]) -> None:
    found = path.stat()
    change(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_what_changed_or_is_gone_is_counted_and_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path / "in", *(f"{name}.png" for name in "abcd"))
    write_table(root / "t.parquet", 5, image=[PICTURE] * 5)
    write_table(root / "u.parquet", 5, image=[PICTURE] * 5)
    (root / "v.tar").write_bytes(tar([("a.png", PICTURE), ("b.png", PICTURE)]))
    again = _run(str(root))
    assert _seen(again()) == (0, 16, 0)
    (root / "a.png").write_bytes(WRONG)
    (root / "b.png").unlink()
    write_table(root / "t.parquet", 3, image=[WRONG] * 3)
    (root / "u.parquet").unlink()
    (root / "v.tar").write_bytes(b"no tar")
    monkeypatch.setattr(audit_source, "_open_stream", lambda *_: pytest.fail("it is read"))
    report = again()
    assert (report.ok, *_seen(report)) == (True, 0, 2, 14)


def test_a_table_that_changes_while_it_is_read_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "in" / "t.parquet", 2, image=[WRONG] * 2)
    again, open_stream = _run(f"{tmp_path}/in"), audit_source._open_stream
    assert _seen(again()) == (2, 2, 0)

    def change(*arguments: Any) -> Any:
        path.touch()
        return open_stream(*arguments)

    monkeypatch.setattr(audit_source, "_open_stream", change)
    assert _seen(again()) == (0, 0, 2)


def test_links_are_followed_as_far_as_the_job_follows_them(tmp_path: Path) -> None:
    """Out of a folder none leads; a file that is named by itself may be one."""
    outside = write_images(tmp_path / "elsewhere", "x.png") / "x.png"
    inside = write_images(tmp_path / "in", "a.png") / "a.png"
    os.utime(outside, ns=(0, inside.stat().st_mtime_ns))
    again = _run(f"{tmp_path}/in")
    inside.unlink()
    inside.symlink_to(outside)
    assert _seen(again()) == (0, 0, 1)
    assert _seen(_run_beside(str(inside), tmp_path / "out2")) == (0, 1, 0)


def test_an_image_that_rotted_where_it_lies_is_found(tmp_path: Path) -> None:
    """As large as it was, and no older: to the store it is what was labelled."""
    root = write_images(tmp_path / "in", "a.png")
    write_table(root / "t.parquet", 2, image=[PICTURE] * 2)
    again = _run(str(root))
    for path in (root / "a.png", root / "t.parquet"):
        _keep_time(path, lambda path: path.write_bytes(bytes(path.stat().st_size)))
    report = again()
    assert _seen(report) == (3, 3, 0)
    assert all("cannot be opened" in found.message for found in report.findings)
