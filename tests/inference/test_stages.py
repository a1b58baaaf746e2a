from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.images.codec import decode_label, encode_image, encode_mask
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.preparing import PrepareChunks
from fcn_ray.inference.stages import PIXELS, CommitChunks, DecodeImages, ReadChunks, finish_rows, read_receipts
from fcn_ray.tables import schema
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import Input, understand_input
from fcn_ray.tables.plan import extend_plan, pending_chunks
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.runs import open_run
from fcn_ray.tables.sources import Piece
from tests import pictures

ROOT = Path(__file__).parents[2]


def _read_table(images: list[bytes | None], errors: list[str | None] | None = None) -> pa.Table:
    """What the read stage leaves: encoded images with their origin."""
    count = len(images)
    return pa.table(
        {
            schema.CHUNK_ID: ["0" * 32] * count,
            schema.CHUNK_ROW: list(range(count)),
            schema.CHUNK_ROWS: [count] * count,
            schema.PLAN: pa.array([1] * count, pa.int32()),
            schema.IMAGE_ID: [f"image-{i}" for i in range(count)],
            schema.PATH: [f"folder/image-{i}.jpg" for i in range(count)],
            schema.ROW: [0] * count,
            schema.IMAGE: pa.array(images, pa.large_binary()),
            schema.SOURCE_ERROR: pa.array(errors or [None] * count, pa.string()),
            schema.SOURCE_MESSAGE: pa.array([e and f"why {e}" for e in errors or [None] * count], pa.string()),
        }
    )


def test_decode_gives_pixels_or_the_reason_why_not() -> None:
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    data = [encode_image(image, "PNG"), b"", None, b"<html></html>", None]
    table = DecodeImages(10**6)(_read_table(data, [None, None, None, None, "unreadable"]))
    assert table[schema.STATUS].to_pylist() == ["ok", "empty", "null", "not_image", "unreadable"]
    assert table[schema.HEIGHT].to_pylist() == [5, None, None, None, None]
    assert table[schema.WIDTH].to_pylist() == [7, None, None, None, None]
    assert table[PIXELS][0].as_py() == image.tobytes()
    assert table[PIXELS].null_count == 4
    errors = table[schema.ERROR].to_pylist()
    assert errors[0] is None
    assert all(errors[1:])
    assert errors[4] == "why unreadable"
    assert not {schema.IMAGE, schema.SOURCE_ERROR, schema.SOURCE_MESSAGE} & set(table.column_names)


def test_what_has_no_room_in_its_chunk_travels_encoded() -> None:
    """Room for 300 bytes: the second image of 192 has none, the third of 75 has; bad ones need none."""
    images = [np.full((side, side, 3), side, np.uint8) for side in (8, 8, 5)]
    data = [encode_image(image, "PNG") for image in images]
    table = DecodeImages(10**6)(_read_table([data[0], b"<html>", data[1], data[2]]), room=300)
    assert table[schema.STATUS].to_pylist() == ["ok", "not_image", "ok", "ok"]
    assert table[PIXELS].to_pylist() == [images[0].tobytes(), None, None, images[2].tobytes()]
    assert table[schema.ENCODED].to_pylist() == [None, None, data[1], None]
    assert table[schema.HEIGHT].to_pylist() == [8, None, 8, 5]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_the_pixels_of_a_chunk_may_be_more_than_one_image_may_take() -> None:
    """Arrow asks for 768 MB to put 480 MB of pixels together, where an image may take 500. In a process of its own,
    whose memory is not there already."""
    run = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]


_LIMITED = """
import numpy as np
from fcn_ray.images.codec import encode_image
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.stages import DecodeImages
from tests.inference.test_stages import _read_table
data = encode_image(np.zeros((4000, 2000, 3), np.uint8), "PNG")
table = DecodeImages(10**7)(_read_table([data] * 20), Limits(60, 500_000_000).watch)
assert table["status"].to_pylist() == ["ok"] * 20, table["error"].to_pylist()
assert table["pixels"].nbytes >= 480_000_000
"""


def test_finished_rows_take_masks_that_are_encoded(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [2, 0], [1, 1]], np.uint8)
    table = _predicted([mask, None])
    png = encode_mask(mask)
    table = table.set_column(table.column_names.index(schema.MASK), schema.MASK, pa.nulls(2, pa.large_binary()))
    place = table.column_names.index(schema.MASK_PNG)
    table = table.set_column(place, schema.MASK_PNG, pa.array([png, None], pa.large_binary()))
    done = finish_rows(table, pictures.LABELS, "digest", "run")
    assert done[schema.MASK].to_pylist() == [{"bytes": png, "path": "image-0.png"}, None]


def test_a_carried_column_called_pixels_is_not_lost(tmp_path: Path) -> None:
    data = encode_image(np.zeros((4, 6, 3), np.uint8), "PNG")
    pq.write_table(pa.table({"image": pa.array([data], pa.binary()), "pixels": [24]}), tmp_path / "t.parquet")
    piece = Piece("t.parquet", storage.stat(f"{tmp_path}/t.parquet").version, "parquet", 0, 1, 0)
    table = DecodeImages(10**6)(read_rows(understand_input(str(tmp_path)), [piece], Columns()))
    assert table["input_pixels"].to_pylist() == [24]
    assert table[PIXELS].to_pylist() == [bytes(4 * 6 * 3)]


def test_decode_refuses_what_is_too_big_before_it_decodes() -> None:
    data = encode_image(np.zeros((10, 10, 3), np.uint8), "PNG")
    table = DecodeImages(max_pixels=99)(_read_table([data]))
    assert table[schema.STATUS].to_pylist() == ["too_big"]


def _predicted(masks: list[np.ndarray | None]) -> pa.Table:
    table = DecodeImages(10**6)(_read_table([None] * len(masks)))
    count = len(masks)
    columns = {name: table[name] for name in table.column_names if name != PIXELS}
    columns |= {
        schema.MASK_PNG: pa.nulls(count, pa.large_binary()),
        schema.MASK: pa.array([None if m is None else m.tobytes() for m in masks], pa.large_binary()),
        schema.HEIGHT: pa.array([m if m is None else m.shape[0] for m in masks], pa.int32()),
        schema.WIDTH: pa.array([m if m is None else m.shape[1] for m in masks], pa.int32()),
        schema.STATUS: ["null" if m is None else "ok" for m in masks],
        schema.ERROR: pa.array(["no image" if m is None else None for m in masks], pa.string()),
        schema.CLASS_PIXELS: pa.array([None if m is None else [m.size, 0, 0] for m in masks], pa.list_(pa.int64())),
        schema.MEAN_CONFIDENCE: pa.array([None] * count, pa.float32()),
        schema.MIN_CLASS_CONFIDENCE: pa.array([None] * count, pa.float32()),
    }
    return pa.table(columns)


def test_finished_rows_hold_png_ids_with_a_name_in_the_images_place() -> None:
    mask = np.array([[0, 1], [2, 0], [1, 1]], np.uint8)
    table = finish_rows(_predicted([mask, None]), pictures.LABELS, "digest", "run")
    cell = table[schema.MASK][0].as_py()
    np.testing.assert_array_equal(decode_label(cell["bytes"]), mask)
    assert cell["path"] == "image-0.png"
    assert table[schema.MASK][1].as_py() is None
    assert set(table[schema.MODEL_DIGEST].to_pylist()) == {"digest"}


def test_read_to_commit_without_ray(tmp_path: Path) -> None:
    source = pictures.write_parquet(tmp_path / "in.parquet", 5, group=2)
    run = open_run(str(tmp_path / "out"), str(source), {"model": "m"}, pictures.LABELS)
    log = extend_plan(run.uri, run.input, ChunkConfig(rows=3), Columns())
    pending = list(pending_chunks(log))
    read, decode = ReadChunks(run.uri, understand_input(run.input), Columns()), DecodeImages(10**6)
    commit = CommitChunks(run, pictures.LABELS, "m")
    for chunk in pending:
        table = decode(read(pa.Table.from_pylist([asdict(chunk)])))
        count = table.num_rows
        sizes = list(zip(table[schema.HEIGHT].to_pylist(), table[schema.WIDTH].to_pylist(), strict=True))
        table = table.drop_columns([PIXELS])
        for name, column in {
            schema.MASK: pa.array([bytes(h * w) for h, w in sizes], pa.large_binary()),
            schema.MASK_PNG: pa.nulls(count, pa.large_binary()),
            schema.CLASS_PIXELS: pa.array([[h * w, 0, 0] for h, w in sizes], pa.list_(pa.int64())),
            schema.MEAN_CONFIDENCE: pa.array([1.0] * count, pa.float32()),
            schema.MIN_CLASS_CONFIDENCE: pa.array([1.0] * count, pa.float32()),
        }.items():
            table = table.append_column(name, column)
        (receipt,) = read_receipts(commit(table))
        assert receipt.written
        assert receipt.statuses == {"ok": count}
        (again,) = read_receipts(commit(table))
        assert not again.written
    assert list(pending_chunks(log)) == []
    prepare = PrepareChunks(ReadChunks(run.uri, Input("file", "gone"), Columns()), decode, Limits(5, 10**9))
    for chunk in pending:  # as when another job was faster: no image is read again
        (found,) = read_receipts(commit(prepare(pa.Table.from_pylist([asdict(chunk)]))))
        assert (found.chunk_id, found.n_rows, found.written) == (chunk.chunk_id, chunk.n_rows, False)
    rows = [row for file in (Path(run.uri) / "masks").iterdir() for row in pq.read_table(file).to_pylist()]
    assert sorted(row[schema.IMAGE_ID] for row in rows) == [f"in.parquet#{i}" for i in range(5)]
    assert sorted(row["name"] for row in rows) == [f"picture-{i}" for i in range(5)]
