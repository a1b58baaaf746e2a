"""Real children that die of real faults."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray import storage
from fcn_ray.config import ChunkConfig
from fcn_ray.errors import (
    FcnRayError,
    IncompleteError,
    NotInstalledError,
    OutOfReachError,
    RefusedError,
    StorageError,
)
from fcn_ray.images.codec import encode_image
from fcn_ray.inference.frames import Overdue, receive_frame, send_error
from fcn_ray.inference.isolation import prepare_apart
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.stages import PIXELS, DecodeImages, ReadChunks
from fcn_ray.storage.answers import Missing
from fcn_ray.tables import schema
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import Input, understand_input
from fcn_ray.tables.plan import extend_plan, pending_chunks, read_chunk
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.sources import Piece
from tests.inference import poisoning
from tests.s3 import Shim
from tests.tables.archives import tar

LIMITS = Limits(seconds=3, memory=500_000_000)
DECODE = DecodeImages(10**6)


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(poisoning.FOLDER)  # of the children: this process has begun without it


def _pieces(folder: Path, columns: Columns) -> list[Piece]:
    log = extend_plan(f"{folder}/run", f"{folder}/in", ChunkConfig(), columns)
    return [piece for ref in pending_chunks(log) for piece in read_chunk(log.run_uri, ref)]


def _reading(input_uri: str, columns: Columns = Columns()) -> ReadChunks:  # noqa: B008
    return ReadChunks("run", Input("folder", input_uri), columns)


def _image(value: int) -> bytes:
    return encode_image(np.full((20, 30, 3), value, np.uint8), "PNG")


def test_rows_of_a_tar_one_by_one_are_those_of_the_chunk(tmp_path: Path) -> None:
    """The piece of a row says where the chunk begins, not where the row does."""
    (tmp_path / "in").mkdir()
    members = [(f"{value}.{kind}", _image(value)) for value in range(5) for kind in ("png", "cls")]
    (tmp_path / "in" / "a.tar").write_bytes(tar(members))
    log = extend_plan(f"{tmp_path}/run", f"{tmp_path}/in", ChunkConfig(rows=3), Columns())
    pieces = read_chunk(log.run_uri, list(pending_chunks(log))[1])
    assert [(piece.first_row, piece.n_rows, piece.offset > 0) for piece in pieces] == [(3, 2, True)]
    rows = prepare_apart(_reading(f"{tmp_path}/in"), pieces, DECODE, LIMITS)
    assert rows.to_pylist() == DECODE(read_rows(Input("folder", f"{tmp_path}/in"), pieces, Columns())).to_pylist()
    assert rows["key"].to_pylist() == ["3", "4"]


@pytest.mark.usefixtures("_poisoned")
def test_a_picture_that_kills_hangs_or_fills_the_process_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cells = [_image(1), poisoning.encode_poison("kill"), _image(2), poisoning.encode_poison("hang"), b"", None]
    table = pa.table({"image": pa.array(cells, pa.binary()), "name": list("abcdef"), "key": list("uvwxyz")})
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=2)
    (tmp_path / "in" / "b.png").write_bytes(poisoning.encode_poison("fill"))
    (tmp_path / "in" / "c.png").write_bytes(poisoning.encode_poison("kill"))
    (tmp_path / "in" / "d.png").write_bytes(_image(3))
    columns = Columns(id="key")
    pieces = _pieces(tmp_path, columns)

    rows = prepare_apart(_reading(f"{tmp_path}/in", columns), pieces, DECODE, LIMITS)

    assert rows[schema.STATUS].to_pylist() == [
        "ok",
        "crash",
        "ok",
        "timeout",
        "empty",
        "null",
        "too_big",
        "crash",
        "ok",
    ]
    assert rows[schema.IMAGE_ID].to_pylist() == [*"uvwxyz", "b.png", "c.png", "d.png"]
    assert rows["name"].to_pylist() == [*"abcdef", None, None, None]
    errors = rows[schema.ERROR].to_pylist()
    assert errors[1] == "the process that decoded it, and nothing else, died (SIGSEGV)"
    assert errors[3] == "it was still being decoded after 3 seconds"
    healthy = DECODE(read_rows(Input("folder", f"{tmp_path}/in"), pieces, columns))
    for row in (0, 2, 4, 5, 8):
        assert rows.slice(row, 1).select(healthy.column_names).to_pylist() == healthy.slice(row, 1).to_pylist()
    assert rows[PIXELS].null_count == 6


@pytest.mark.usefixtures("_poisoned")
def test_the_rows_of_a_chunk_share_its_room_for_pixels_whichever_child_decodes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two images of 1,800 bytes: both are used when the first child dies."""
    monkeypatch.setattr("fcn_ray.inference.isolation.PIXELS_ROOM", 4000)
    (tmp_path / "in").mkdir()
    cells = [_image(1), _image(2), _image(3), poisoning.encode_poison("kill"), _image(4)]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), tmp_path / "in" / "a.parquet")
    rows = prepare_apart(_reading(f"{tmp_path}/in"), _pieces(tmp_path, Columns()), DECODE, LIMITS)
    assert rows[schema.STATUS].to_pylist() == ["ok", "ok", "ok", "crash", "ok"]
    assert [cell and len(cell) for cell in rows[PIXELS].to_pylist()] == [1800, 1800, None, None, None]
    assert rows[schema.ENCODED].to_pylist() == [None, None, cells[2], None, cells[4]]


def test_what_a_decoder_prints_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(_image(1))
    (tmp_path / "noise").mkdir()
    noise = (
        "import os, PIL.Image\n_init = PIL.Image.init\nPIL.Image.preinit = lambda: (os.write(1, b'x' * 99), _init())"
    )
    (tmp_path / "noise" / "sitecustomize.py").write_text(noise)
    monkeypatch.syspath_prepend(str(tmp_path / "noise"))
    rows = prepare_apart(_reading(f"{tmp_path}/in"), _pieces(tmp_path, Columns()), DECODE, LIMITS)
    assert rows[schema.STATUS].to_pylist() == ["ok"]


@pytest.mark.s3
def test_workers_ask_a_store_for_images_and_not_what_the_input_is(s3: Shim) -> None:
    for value in range(3):
        storage.put_if_absent(f"{s3.root}/in/{value}.png", _image(value))
    log = extend_plan(f"{s3.root}/run", f"{s3.root}/in", ChunkConfig(), Columns())
    read = pickle.loads(pickle.dumps(ReadChunks(log.run_uri, understand_input(f"{s3.root}/in"), Columns())))
    (chunk,) = pending_chunks(log)
    pieces = read_chunk(log.run_uri, chunk)

    s3.fail("none")
    rows = DECODE(read(pa.Table.from_pylist([asdict(chunk)])))
    assert _asked(s3) == [("GET", f"/bucket/in/{value}.png") for value in range(3)]
    s3.fail("none")
    apart = prepare_apart(read, pieces, DECODE, LIMITS)
    assert apart[PIXELS].to_pylist() == rows[PIXELS].to_pylist()
    assert _asked(s3) == [("GET", f"/bucket/in/{value}.png") for value in range(3)]


def _asked(store: Shim) -> list[tuple[str, str]]:
    """Requests but those for the plan."""
    return sorted((method, path) for method, path in store.seen if not path.startswith("/bucket/run/"))


def test_a_store_out_of_reach_is_no_fault_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("FCN_RAY_PATIENCE_SECONDS", "0.1")
    piece = Piece("a.png", "1", "image", 0, 1, 100)
    with pytest.raises(OutOfReachError, match=r"s3://bucket/in/a.png: the store cannot be reached"):
        prepare_apart(_reading("s3://bucket/in"), [piece], DECODE, LIMITS)


def test_a_machine_without_credentials_is_no_fault_of_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    piece = Piece("a.png", "1", "image", 0, 1, 100)
    with pytest.raises(RefusedError, match="no credentials found"):
        prepare_apart(_reading("s3://bucket/in"), [piece], DECODE, LIMITS)


def test_a_process_that_does_not_begin_is_no_fault_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(_image(1))
    (tmp_path / "ending").mkdir()
    (tmp_path / "ending" / "sitecustomize.py").write_text("import os\nos._exit(7)")
    monkeypatch.syspath_prepend(str(tmp_path / "ending"))
    with pytest.raises(IncompleteError, match=r"did not begin \(exit code 7\)"):
        prepare_apart(_reading(f"{tmp_path}/in"), _pieces(tmp_path, Columns()), DECODE, LIMITS)


@pytest.mark.parametrize(
    ("sent", "kind"),
    [(NotInstalledError("a package"), NotInstalledError), (Missing("a file"), StorageError)],
    ids=["ours", "a kind that only storage knows"],
)
def test_an_error_comes_out_of_a_child_as_its_kind(sent: FcnRayError, kind: type[FcnRayError]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as out:
        with os.fdopen(writing, "wb") as into:
            send_error(into, sent)
        with pytest.raises(FcnRayError, match=f"^{sent}$") as received:
            receive_frame(out, None)
    assert type(received.value) is kind


def test_a_frame_that_is_late_is_overdue() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as out, os.fdopen(writing, "wb"), pytest.raises(Overdue):
        receive_frame(out, time.monotonic())


_HANG = """
import ctypes, sys
from fcn_ray.inference.limits import Limits
with Limits(seconds=0.5, memory=10**9).watch() as begin_image:
    begin_image()
    print("begun", flush=True)
    ctypes.PyDLL(None).pause()
"""


def test_a_decoder_that_holds_the_interpreter_is_ended() -> None:
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", _HANG], capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - begun < 50
    assert (ended.returncode, ended.stdout) == (1, "begun\n")
    assert "Timeout" in ended.stderr


_QUICK = """
import time
from fcn_ray.inference.limits import Limits
with Limits(seconds=0.5, memory=10**9).watch() as begin_image:
    for _ in range(20):
        begin_image()
        time.sleep(0.2)
time.sleep(2)
print("alive")
"""


def test_the_clock_is_of_each_image_and_stops_behind_the_last() -> None:
    """20 images of 0.2 s; 0.5 s are allowed for each, and a second for the clock itself."""
    ended = subprocess.run([sys.executable, "-c", _QUICK], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "alive\n")


_FILL = """
from fcn_ray.inference.limits import Limits
with Limits(seconds=60, memory=600 << 20).watch() as begin_image:
    held = []
    for _ in range(4):  # what other images took does not count
        begin_image()
        held.append(bytearray(b"1") * (400 << 20))
        del held[:]
    try:
        begin_image()
        held.append(bytearray(700 << 20))
        print("no limit")
    except MemoryError:
        print("limit")
held.append(bytearray(700 << 20))
print("no limit behind it")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_memory_is_limited_for_each_image() -> None:
    ended = subprocess.run([sys.executable, "-c", _FILL], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "limit\nno limit behind it\n"), ended.stderr
