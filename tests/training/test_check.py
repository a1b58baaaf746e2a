from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcn_ray.config import CheckConfig
from fcn_ray.images.codec import encode_image, encode_mask
from fcn_ray.labels import METADATA_KEY
from fcn_ray.training.check import CheckReport, Findings, check, check_piece
from fcn_ray.training.ingest import Columns, open_collection
from tests import pictures
from tests.training.making import damage

COLUMNS = Columns("image", "mask")


def _image(value: int, *, height: int = 8, width: int = 10) -> bytes:
    return encode_image(np.full((height, width, 3), value, np.uint8), "PNG")


def _turned(value: int) -> bytes:
    """A photograph that its camera stored lying on its side: 10x8 pixels that are to be shown as 8x10."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((8, 10, 3), value, np.uint8)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def _mask(*ids: int, height: int = 8, width: int = 10) -> bytes:
    return encode_mask(np.resize(np.array(ids, np.uint8), (height, width)))


ROWS = [
    (_image(1), _mask(0)),
    (_image(2), _mask(1, 255)),
    (b"<html>", _mask(0)),
    (None, _mask(0)),
    (_image(3), b"no png"),
    (_image(4), _mask(0, width=9)),
    (_image(5), _mask(7)),
    (_image(6), _mask(255)),
    (_turned(7), _mask(0, height=10, width=8)),
    (_turned(8), _mask(0)),
    (_image(1), _mask(0)),
]


def _write(path: Path, rows: list[tuple[bytes | None, bytes]], *, names: bool = True) -> Path:
    table = pa.table({"image": [image for image, _ in rows], "mask": [mask for _, mask in rows]})
    if names:
        table = table.replace_schema_metadata({METADATA_KEY: pictures.LABELS.to_json()})
    pq.write_table(table, path, row_group_size=3)
    return path


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_each_row_is_found_and_named_for_what_it_is(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.parquet", ROWS)
    val = _write(tmp_path / "val.parquet", [(_image(9), _mask(2)), (_image(2), _mask(1)), (_image(9), _mask(2))])
    report = check(CheckConfig(data=str(train), val=str(val)))
    assert (report.data.n_images, report.data.sizes[10, 8], report.data.sizes[8, 10]) == (11, 7, 2)
    named = {kind: [text.split(":")[0] for text in texts] for kind, texts in report.data.examples.items()}
    assert {kind: sorted(texts) for kind, texts in named.items()} == {
        "image": ["train.parquet#2", "train.parquet#3"],
        "mask": ["train.parquet#4"],
        "size": ["train.parquet#5", "train.parquet#9"],
        "id": ["train.parquet#6"],
        "void": ["train.parquet#7"],
        "exif": ["train.parquet#8", "train.parquet#9"],
        "duplicate": ["train.parquet#10 is train.parquet#0"],
    }
    assert report.val is not None
    assert report.val.examples == {
        "shared": ["val.parquet#1 is train.parquet#1"],
        "duplicate": ["val.parquet#2 is val.parquet#0"],
    }
    assert not report.trainable
    text = "\n".join(report.lines())
    assert "11 images, 7 of 10x8; 1 other sizes" in text
    assert "train.parquet#5: image 10x8, mask 9x8" in text
    assert "train.parquet#6: 7" in text
    assert "car      0.00 %         0  in no label" in text
    assert text.endswith("training would refuse this: mend or remove the rows above")


def test_without_class_names_ids_are_counted_and_none_is_wrong(tmp_path: Path) -> None:
    (piece,) = open_collection(str(_write(tmp_path / "a.parquet", [(_image(1), _mask(0, 7))])), COLUMNS).pieces
    found = check_piece(piece, COLUMNS, None, 10**6)
    assert (found.pixels[0], found.pixels[7], found.images[7], found.counts.total()) == (40, 40, 1, 0)
    report = CheckReport(found, None, None)
    assert "class 7   50.00 %         1" in report.lines()
    assert not report.trainable
    assert "the files do not name their classes" in list(report.lines())[-1]
    found.pixels[1] = 5
    named = CheckReport(found, None, pictures.LABELS)
    assert (named.trainable, list(named.lines())[-1]) == (True, "training can start")


def test_a_row_group_that_cannot_be_read_is_found_and_refused(tmp_path: Path) -> None:
    path = pictures.write_parquet(tmp_path / "a.parquet", 6, group=3)
    damage(path, 0)
    pieces = open_collection(str(path), COLUMNS).pieces
    found, whole = (check_piece(piece, COLUMNS, pictures.LABELS, 10**6) for piece in pieces)
    assert (found.n_images, dict(found.counts)) == (0, {"group": 1})
    assert f"{path}: row group 0 cannot be read" in found.examples["group"][0]
    assert whole.counts.total() == 0
    found.merge(whole)
    assert not CheckReport(found, None, pictures.LABELS).trainable


def test_images_above_the_limit_are_found_from_their_header(tmp_path: Path) -> None:
    (piece,) = open_collection(str(_write(tmp_path / "a.parquet", [(_image(1), _mask(0))])), COLUMNS).pieces
    found = check_piece(piece, COLUMNS, pictures.LABELS, 79)
    assert found.examples["image"][0].startswith("a.parquet#0: too_big")


def test_many_rows_of_a_kind_are_counted_but_a_few_are_named() -> None:
    parts = [Findings(), Findings()]
    for part in parts:
        for number in range(4):
            part.add("void", f"row {number}")
    parts[0].merge(parts[1])
    parts[0].pixels[:2] = 80
    lines = list(CheckReport(parts[0], None, pictures.LABELS).lines())
    assert "8 masks that are nothing but void: they teach nothing" in lines
    assert sum(line.startswith("    row") for line in lines) == 5
    assert "    and 3 more" in lines
    assert lines[-1] == "training can start", "void is a waste, not a mistake"
