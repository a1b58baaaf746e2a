"""The whole catalogue of bad and odd pictures: by the decoder, by a labelling job, and by training."""

from __future__ import annotations

import ast
import io
import itertools
import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcn_ray.errors import DataError
from fcn_ray.images.codec import ImageError, decode_image, decode_label, encode_mask
from fcn_ray.images.formats import sniff
from fcn_ray.images.headers import read_header
from fcn_ray.tables import schema
from fcn_ray.tables.audit import audit
from fcn_ray.tables.audit_source import measure
from fcn_ray.tables.sources import IMAGE_SUFFIXES
from tests.images.case import MAX_PIXELS, Case
from tests.images.catalogue import ROWS, cases, inputs
from tests.images.folders import NAMES, STRUCT, Folder, good, table
from tests.images.labelling import label
from tests.images.tables import page_header_changed
from tests.pictures import LABELS

PACKAGE = Path(__file__).parents[2] / "fcn_ray"
quiet = pytest.mark.filterwarnings("ignore")


def test_every_row_of_the_catalogue_has_inputs_and_none_is_there_twice() -> None:
    counts = Counter(case.row for case in (*cases(), *inputs()))
    assert list(ROWS) == list(range(1, 43))
    assert sorted(counts) == [row for row in ROWS if row != 30]
    assert len(cases()) >= 300
    assert len({str(case) for case in (*cases(), *inputs())}) == counts.total()
    assert len({case.data for case in cases()}) == len(cases())
    assert {case.status for case in cases()} == {schema.OK, *schema.BAD_STATUSES[:8]}


@quiet
@pytest.mark.parametrize("row", [row for row in ROWS if row < 30], ids=ROWS.get)
def test_the_decoder_gives_what_the_catalogue_says(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail(f"{args} was started"))
    wrong = {str(case): fault for case in cases() if case.row == row and (fault := _fault(case))}
    assert wrong == {}


def _fault(case: Case) -> str | None:
    """What is not as the catalogue says."""
    try:
        decoded = decode_image(case.data, MAX_PIXELS)
    except ImageError as error:
        return None if error.status == case.status and error.message else f"{error.status}: {error}"
    if (schema.OK, decoded.flags) != (case.status, case.flags):
        return f"ok with flags {decoded.flags}, expected {case.status} with {case.flags}"
    if decoded.pixels.dtype != np.uint8 or decoded.pixels.shape != (*case.shape, 3):
        return f"{decoded.pixels.dtype} {decoded.pixels.shape}, expected {case.shape}"
    if case.pixels is None:
        return None
    difference = int(np.abs(decoded.pixels.astype(int) - case.pixels).max())
    return None if difference <= case.tolerance else f"pixels differ by {difference} of 255"


@quiet
def test_the_audit_measures_what_the_decoder_gives() -> None:
    good = [case for case in cases() if case.status == schema.OK and case.data is not None]
    assert {str(case): measured for case in good if (measured := measure(case.data)) != case.shape} == {}


def test_the_size_of_every_picture_is_in_its_header() -> None:
    """But for tiles, which a decoder holds whole."""
    for case in cases():
        if case.status == schema.OK and case.data is not None:
            header = read_header(case.data, sniff(case.data) or "")
            assert header is not None, case
            sizes = [case.shape, case.shape[::-1]] if "exif_rotated" in case.flags else [case.shape]
            assert (header.height, header.width) in sizes or "in tiles" in case.name, case


# ---------------------------------------------------------------------------------------------------- a labelling job


@quiet
def test_a_job_gives_every_picture_its_row_from_a_folder_and_from_tables(tmp_path: Path) -> None:
    expected = {**_write_folder(tmp_path / "in" / "files"), **_write_tables(tmp_path / "in")}
    labelled = label(tmp_path / "in", tmp_path / "out")
    assert labelled.planned == len(labelled.rows) == len(expected) == 3 * len(cases()) - 1
    assert (labelled.listing.n_quarantined, dict(labelled.listing.skipped)) == (0, {})
    found = {(row[schema.PATH], row[schema.ROW]): row for row in labelled.rows}
    wrong = {
        str(case): (found[key][schema.STATUS], found[key][schema.FLAGS], found[key][schema.ERROR])
        for key, case in expected.items()
        if (found[key][schema.STATUS], tuple(found[key][schema.FLAGS])) != (case.status, case.flags)
    }
    assert wrong == {}
    for key, case in expected.items():
        size = case.shape if case.status == schema.OK else (None, None)
        assert (found[key][schema.HEIGHT], found[key][schema.WIDTH]) == size
        error = found[key][schema.ERROR]
        assert error is None if case.status == schema.OK else (0 < len(error) <= 500 and error.isprintable())
    for case, row in [(case, found[key]) for key, case in expected.items()][::7]:
        if case.status == schema.OK:
            assert decode_label(row[schema.MASK]["bytes"]).shape == case.shape
    assert labelled.manifest.statuses == dict(sorted(Counter(case.status for case in expected.values()).items()))
    assert audit(str(tmp_path / "out")).ok


def _write_folder(folder: Path) -> dict[tuple[str, int], Case]:
    """Names that say nothing: every suffix in turn, unless a case has one of its own."""
    folder.mkdir(parents=True)
    suffixes = itertools.cycle(IMAGE_SUFFIXES)
    expected = {}
    for number, case in enumerate(cases()):
        if case.data is not None:  # there is no file that is null
            name = f"{number:04}{case.suffix or next(suffixes)}"
            (folder / name).write_bytes(case.data)
            expected[f"files/{name}", 0] = case
    return expected


def _write_tables(folder: Path) -> dict[tuple[str, int], Case]:
    data = [case.data for case in cases()]
    structs = [{"bytes": cell, "path": f"{row}.jpg"} for row, cell in enumerate(data)]
    structs[data.index(None)]["path"] = None
    pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), folder / "bytes.parquet", row_group_size=120)
    pq.write_table(pa.table({"image": pa.array(structs, STRUCT)}), folder / "hf.parquet", row_group_size=70)
    return {(name, row): case for name in ("bytes.parquet", "hf.parquet") for row, case in enumerate(cases())}


def _jobs() -> Iterator[tuple[int, list[Folder]]]:
    """Folders of one row that want the same columns, for one job."""
    by_columns = sorted(inputs(), key=lambda folder: (folder.row, str(folder.columns)))
    for (row, _), group in itertools.groupby(by_columns, key=lambda folder: (folder.row, folder.columns)):
        yield row, list(group)


@quiet
@pytest.mark.parametrize("row", [row for row in ROWS if row > 30], ids=ROWS.get)
def test_a_job_gives_the_rows_that_the_catalogue_says(row: int, tmp_path: Path) -> None:
    for number, (_, group) in enumerate(job for job in _jobs() if job[0] == row):
        _check_job(group, tmp_path / str(number))


def _check_job(group: list[Folder], root: Path) -> None:
    """All folders of the group in one input, side by side."""
    places = {f"{number:02}": folder for number, folder in enumerate(group)}

    def change() -> None:
        for place, folder in places.items():
            folder.meanwhile(root / "in" / place)

    for place, folder in places.items():
        (root / "in" / place).mkdir(parents=True)
        folder.make(root / "in" / place)
    around = {path for path in root.parent.rglob("*") if path.is_file()}
    labelled = label(root / "in", root / "out", group[0].columns, change)
    expected = {(f"{place}/{path}", at): s for place, folder in places.items() for (path, at), s in folder.rows.items()}
    found = labelled.statuses
    names = {place: folder.name for place, folder in places.items()}
    assert {key: (names[key[0][:2]], found.get(key)) for key in expected if found.get(key) != expected[key]} == {}
    assert found.keys() == expected.keys()
    reasons = {table.path: table.reason for table in labelled.listing.quarantined}
    refused = {f"{place}/{path}": why for place, folder in places.items() for path, why in folder.quarantined.items()}
    assert reasons.keys() == refused.keys()
    assert [path for path, why in refused.items() if why not in reasons[path]] == []
    assert labelled.listing.skipped == sum((Counter(folder.skipped) for folder in group), Counter())
    rows = sorted(labelled.rows, key=lambda result: (result[schema.PATH], result[schema.ROW]))
    for place, folder in places.items():
        ids = [result[schema.IMAGE_ID] for result in rows if result[schema.PATH].startswith(f"{place}/")]
        assert not folder.ids or tuple(name.removeprefix(f"{place}/") for name in ids) == folder.ids
    assert all(result[schema.ERROR] is None or result[schema.ERROR].isprintable() for result in rows)
    written = {path for path in root.parent.rglob("*") if path.is_file()} - around
    assert all(path.is_relative_to(root / "out") for path in written)
    assert all(
        re.fullmatch(r"[\w.=-]+", path.relative_to(root / "out").as_posix().replace("/", "-")) for path in written
    )
    report = audit(str(root / "out"))
    assert report.ok
    images = Counter(result[schema.IMAGE_ID] for result in rows)
    assert report.shared_ids == (sum(count > 1 for count in images.values()) if group[0].columns.id else 0)
    assert bool(report.shared_ids) == any("belong to several images" in line for line in report.lines())


def test_names_that_are_no_ascii_or_escape_are_among_those_tried() -> None:
    assert any(ord(character) > 127 for name in NAMES for character in name)
    assert {"a\r\nb.png", "%2e%2e%2fa.png", "a=b.png", "a#1.png", "UPPER.PNG", "upper.png"} <= set(NAMES)


# ------------------------------------------------------------------------------------------------------------ training


@quiet
def test_training_decodes_by_the_same_function() -> None:
    from fcn_ray.inference import stages
    from fcn_ray.training import check, ingest

    assert ingest.decode_image is check.decode_image is stages.decode_image is decode_image
    for case in cases():
        shape = case.shape if case.status == schema.OK else (1, 1)
        row = {ingest.IMAGE: case.data, ingest.LABEL: encode_mask(np.zeros(shape, np.uint8)), ingest.KEY: "t.parquet#7"}
        if case.status != schema.OK:
            with pytest.raises(DataError, match=rf"t\.parquet#7: training image is {case.status}: "):
                ingest.decode_sample(row, LABELS, MAX_PIXELS)
            continue
        image, _ = ingest.decode_sample(row, LABELS, MAX_PIXELS)
        assert image.shape == (*shape, 3), case
        if case.pixels is not None:
            assert np.abs(image.astype(int) - case.pixels).max() <= case.tolerance, case


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def test_pillow_opens_images_in_one_place_and_knows_which_formats() -> None:
    """But for the audit, which shares no code with what it audits."""
    opened = {
        path.relative_to(PACKAGE).as_posix(): [keyword.arg for keyword in call.keywords]
        for path in PACKAGE.rglob("*.py")
        for call in _calls(path)
        if ast.unparse(call.func) == "Image.open"
    }
    audits = {f"tables/audit_{name}.py": ["formats"] for name in ("rows", "source")}
    assert opened == {"images/codec.py": ["formats"]} | audits


def test_pillows_own_limits_are_never_taken_away() -> None:
    """The audit sets its own for a mask whose header it has read."""
    loosened = re.compile(r"MAX_IMAGE_PIXELS\s*=\s*None|LOAD_TRUNCATED_IMAGES|MAX_TEXT_CHUNK|MAX_TEXT_MEMORY")
    assert [path for path in PACKAGE.rglob("*.py") if loosened.search(path.read_text())] == []


@quiet
def test_limits_hold_when_somebody_has_taken_pillows_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    wrong = {str(case): fault for case in cases() if case.status == "too_big" and (fault := _fault(case))}
    assert wrong == {}


# -------------------------------------------------------------------------------------------------------------- memory

_CHILD = """
import json, pickle, resource, sys, time, warnings
from fcn_ray.images.codec import ImageError, decode_image
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import Input
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.sources import Piece

warnings.simplefilter("ignore")
cases, (folder, name, version) = pickle.load(open(sys.argv[1], "rb"))

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def decode(data):
    try:
        decode_image(data, int(sys.argv[2]))
        return "ok"
    except ImageError as error:
        return error.status

decode(cases[-1])
before = peak()
statuses = [decode(data) for data in cases]
pictures = peak()
rows = read_rows(Input("folder", folder), [Piece(name, version, "parquet", 0, 6, 1)], Columns())
print(json.dumps([statuses, rows["source_error"].to_pylist(), pictures - before, peak() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory from there")
def test_nothing_in_the_catalogue_takes_much_memory_or_its_process(tmp_path: Path) -> None:
    """Row 30, as far as a decoder in the same process goes; and row 39, of which an allocator would say 2 GiB."""
    from fcn_ray import storage

    data = table(tmp_path / "t.parquet", compression="snappy")
    place = pq.read_metadata(io.BytesIO(data)).row_group(1).column(0).data_page_offset
    (tmp_path / "t.parquet").write_bytes(page_header_changed(data, place, "compressed", 2**31 - 1))
    version = storage.stat(str(tmp_path / "t.parquet")).version
    images = [case.data for case in cases()] + [good()]
    (tmp_path / "cases").write_bytes(pickle.dumps((images, (str(tmp_path), "t.parquet", version))))
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "cases"), str(MAX_PIXELS)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=PACKAGE.parent,
    )
    statuses, errors, pictures, all_kilobytes = json.loads(run.stdout)
    assert statuses == [*(case.status for case in cases()), "ok"]
    assert errors == [None] * 3 + ["unreadable"] * 3
    assert pictures < 60_000
    assert all_kilobytes < 200_000
