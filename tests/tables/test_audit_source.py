"""Masks against the images that they were made of: whatever kind of input holds them, and whatever became of it."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import UnavailableError
from fcn_ray.images.codec import decode_image
from fcn_ray.tables import audit_source
from fcn_ray.tables.audit import AuditReport, audit
from fcn_ray.tables.audit_plans import PlanRow
from fcn_ray.tables.audit_rows import Labelled
from fcn_ray.tables.audit_source import Sources, measure
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import extend_plan, pending_chunks
from fcn_ray.tables.runs import open_run
from tests.tables.archives import tar
from tests.tables.making import HEIGHT, IDENTITY, LABELS, WIDTH, png, result_rows, write_images, write_table

PICTURE = png(1)
WRONG = png(1, size=(WIDTH + 1, HEIGHT))
RIGHT_SIZE = Labelled(HEIGHT, WIDTH, None)


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
    assert "4 images measured in the input; 0 changed, or cannot be had or told" in list(report.lines())
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
    monkeypatch.setattr(audit_source, "read_rows", lambda *_, **__: pytest.fail("they are read"))
    assert _seen(again()) == (0, 0, 0)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


def _late_png() -> bytes:
    """EXIF that does not say which way is up, and, behind the pixels, XMP that does."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    text = _png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    return PICTURE[:33] + _png_chunk(b"eXIf", exif.tobytes()[6:]) + PICTURE[33:-12] + text + PICTURE[-12:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with_xmp(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        _late_png(),
        _with_xmp("TIFF", tiffinfo={700: XMP}),
        _with_xmp("TIFF", tiffinfo={700: XMP}, compression="tiff_lzw"),
        _with_xmp("JPEG", xmp=XMP),
        _with_xmp("WEBP", xmp=XMP),
    ],
    ids=["png", "tiff", "tiff_lzw", "jpeg", "webp"],
)
def test_orientation_that_xmp_tells(data: bytes) -> None:
    assert measure(data) == decode_image(data, 1000).pixels.shape[:2] == (WIDTH, HEIGHT)


def test_what_is_no_image_has_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure(b"<html>") == "it is no image"
    assert measure(_encode("PCX", (WIDTH, HEIGHT), 1)) == "it is no image"
    assert str(measure(PICTURE[:45])).startswith("OSError: ")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", _no_memory)
    with pytest.raises(MemoryError):
        measure(PICTURE)


def _no_memory(_: Any) -> None:
    raise MemoryError


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


def test_a_mask_of_a_cell_without_an_image_is_found(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2, image=[PICTURE, None])
    report = _run(f"{tmp_path}/in")()
    assert _seen(report) == (1, 2, 0)
    assert "'t.parquet' row 1 cannot be opened: there is none" in report.findings[0].message


def test_a_damaged_row_group_is_no_fault_of_the_others(tmp_path: Path) -> None:
    path = write_table(tmp_path / "in" / "t.parquet", 6, group=2, image=[PICTURE] * 5 + [WRONG])
    again = _run(f"{tmp_path}/in")
    group = pq.read_metadata(path).row_group(1).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    _keep_time(path, lambda path: _overwrite(path, start, group.total_compressed_size))
    assert _seen(again()) == (1, 4, 2)


def _overwrite(path: Path, start: int, count: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:start] + bytes(count) + data[start + count :])


def test_masks_are_no_images_unless_they_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2, image=[1, 2], mask=[WRONG] * 2, picture=[PICTURE] * 2)
    assert _seen(_run(f"{tmp_path}/in")()) == (0, 2, 0)


@pytest.mark.parametrize(("column", "findings"), [(None, 0), ("other", 2), ("mask", 2)])
def test_the_column_is_that_of_the_job(tmp_path: Path, column: str | None, findings: int) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2, image=[PICTURE] * 2, other=[WRONG] * 2, mask=[WRONG] * 2)
    assert _seen(_run(f"{tmp_path}/in", Columns(image=column))()) == (findings, 2, 0)


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


def _opened(path: str, **identity: Any) -> Sources:
    return Sources({"input": path, "identity": identity})


@pytest.mark.parametrize(("allowed", "compared"), [((), 0), (("elsewhere",), 1)])
def test_paths_lead_where_the_job_let_them(tmp_path: Path, allowed: tuple[str, ...], compared: int) -> None:
    image = write_images(tmp_path / "elsewhere", "a.png") / "a.png"
    path = str(write_table(tmp_path / "in" / "t.parquet", 1, image=[str(image)]))
    opened = _opened(path, allow_paths=[f"{tmp_path}/{name}" for name in allowed])
    piece = PlanRow("t.parquet", storage.stat(path).version, 0, 1, "parquet", "", 1)
    assert list(opened.check([piece], [RIGHT_SIZE._replace(version=storage.stat(str(image)).version)])) == []
    assert (opened.compared, opened.others) == (compared, 1 - compared)


def test_structs_of_paths_cannot_be_told(tmp_path: Path) -> None:
    """They have no version in the result; those with bytes are in their table's."""
    write_images(tmp_path / "in", "a.png")
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": PICTURE, "path": "a.png"}]
    path = write_table(tmp_path / "in" / "t.parquet", 2, image=cells)
    assert _seen(_run(str(path))()) == (0, 1, 1)


def test_a_column_that_is_called_image_version(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", 2, image=[PICTURE, WRONG], image_version=["1", "2"])
    assert _seen(_run(f"{tmp_path}/in")()) == (1, 2, 0)


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


def test_what_changed_or_is_gone_is_counted_and_not_judged(tmp_path: Path) -> None:
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
    report = again()
    assert (report.ok, *_seen(report)) == (True, 0, 2, 14)


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
    again = _run(str(root))
    _keep_time(root / "a.png", lambda path: path.write_bytes(bytes(path.stat().st_size)))
    report = again()
    assert _seen(report) == (1, 1, 0)
    assert "its image 'a.png' row 0 cannot be opened: it is no image" in report.findings[0].message


# ------------------------------------------------------------------------------------------------ what cannot be meant


@pytest.mark.parametrize("where", ["http://host/in", "s3://", "file://host/in", "x" * 300, 5, None, ["in"]])
def test_an_input_that_is_none_is_a_finding(tmp_path: Path, where: Any) -> None:
    write_images(tmp_path / "in", "a.png")
    again = _run(f"{tmp_path}/in")
    (path,) = (tmp_path / "out").glob("run=*/run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"input": where}))
    report = again()
    assert [found.kind for found in report.findings] == ["run", "digest"]
    assert "its input cannot be understood" in report.findings[0].message


def test_a_store_that_is_silent_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: str) -> None:
        raise UnavailableError("no answer")

    write_images(tmp_path / "in", "a.png")
    again = _run(f"{tmp_path}/in")
    monkeypatch.setattr(audit_source, "understand_input", silent)
    with pytest.raises(UnavailableError):
        again()


@pytest.mark.parametrize("wrong", [{"columns": {"image": 5}}, {"allow_paths": ["http://host"]}, {"allow_paths": [5]}])
def test_settings_that_are_none_are_a_finding(tmp_path: Path, wrong: dict[str, Any]) -> None:
    write_images(tmp_path / "in", "a.png")
    again = _run(f"{tmp_path}/in")
    (path,) = (tmp_path / "out").glob("run=*/run.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"identity": found["identity"] | wrong}))
    assert "its input cannot be understood" in [finding.message[:30] for finding in again().findings]


def test_a_plan_that_says_an_image_has_three_rows(tmp_path: Path) -> None:
    image = write_images(tmp_path, "a.png") / "a.png"
    opened = _opened(str(tmp_path))
    piece = PlanRow("a.png", storage.stat(str(image)).version, 0, 3, "image", "", 1)
    assert list(opened.check([piece], [RIGHT_SIZE] * 3)) == []
    assert (opened.compared, opened.others) == (0, 3)
