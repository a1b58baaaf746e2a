"""A chunk that took its process down, read and decoded row by row in a process of its own.

When that process dies, or hangs, the row that it was at gets the status `crash` or `timeout`, and another process goes
on behind it. What comes out is what `ReadChunks` and `DecodeImages` leave of the other rows.

    to the child, on stdin       one JSON object, see `_Work`
    from the child, on stdout    for each row two frames: as it was read, without its image; as it was decoded. Or one
                                 that says which store is out of reach, and the end. A frame is 8 bytes with its length,
                                 and an Arrow stream with one row
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

import pyarrow as pa

from fcn_ray.errors import OutOfReachError, UnavailableError
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.stages import DecodeImages, ReadChunks
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.reading import lost_rows, read_rows
from fcn_ray.tables.schema import IMAGE, SOURCE_ERROR, SOURCE_MESSAGE
from fcn_ray.tables.sources import Piece

_OUT_OF_REACH = "out_of_reach"
_LENGTH = struct.Struct("<Q")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Work:
    """What a child does: `pieces` of one row each."""

    input: str
    columns: Columns
    allowed: tuple[str, ...]
    pieces: Sequence[Piece]
    max_pixels: int
    limits: Limits

    @classmethod
    def parse(cls, text: bytes) -> _Work:
        found: dict[str, Any] = json.loads(text)
        carry = found["columns"]["carry"]
        columns = Columns(**found["columns"] | {"carry": carry if isinstance(carry, str) else tuple(carry)})
        pieces, limits = [Piece(**piece) for piece in found["pieces"]], Limits(**found["limits"])
        return cls(**found | {"columns": columns, "pieces": pieces, "limits": limits})


class _Overdue(Exception):  # noqa: N818 - no error of ours, but what a picture did
    pass


def prepare_apart(read: ReadChunks, pieces: Sequence[Piece], decode: DecodeImages, limits: Limits) -> pa.Table:
    """The decoded rows of a chunk's pieces, exactly as many as the pieces say, whatever they do to a process.

    Raises OutOfReachError when a store is.
    """
    rows = [
        replace(piece, first_row=piece.first_row + row, n_rows=1) for piece in pieces for row in range(piece.n_rows)
    ]
    done: list[pa.Table] = []
    while len(done) < len(rows):  # a child is good for one row at least, be it the one that it dies of
        done += _follow_child(
            _Work(read.input, read.columns, read.allowed, rows[len(done) :], decode.max_pixels, limits), decode
        )
    return pa.concat_tables(done, promote_options="default").combine_chunks()


def _follow_child(work: _Work, decode: DecodeImages) -> Iterator[pa.Table]:
    """Rows as the child leaves them, the one that it died of included."""
    with _start_child(work) as child:
        assert child.stdout is not None
        for piece in work.pieces:
            known: pa.Table | None = None
            try:
                known = _receive(child.stdout, None)  # reading has its own patience with stores
                decoded = _receive(child.stdout, time.monotonic() + work.limits.seconds)
            except _Overdue:
                child.kill()
                problem = ("timeout", f"it was still being decoded after {work.limits.seconds:g} seconds")
            except EOFError:
                doing, end = "decoded" if known is not None else "read", _end_of(child)
                problem = ("crash", f"the process that {doing} it, and nothing else, died ({end})")
            else:
                yield decoded
                continue
            yield decode(_blame(known, piece, problem))
            return


def _start_child(work: _Work) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # Ray may have added to the path
    command = [sys.executable, "-m", __name__]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died: its output says so too
        child.stdin.write(json.dumps(asdict(work)).encode())
        child.stdin.close()
    return child


def _blame(known: pa.Table | None, piece: Piece, problem: tuple[str, str]) -> pa.Table:
    """The row of the image that is to blame, with all that is known of it."""
    row = lost_rows(piece, piece.first_row, 1, problem)
    if known is None:
        return row
    for name in (SOURCE_ERROR, SOURCE_MESSAGE):
        known = known.set_column(known.column_names.index(name), name, row[name])
    return known


def _end_of(child: subprocess.Popen[bytes]) -> str:
    code = child.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _receive(pipe: IO[bytes], deadline: float | None) -> pa.Table:
    (length,) = _LENGTH.unpack(_read(pipe.fileno(), _LENGTH.size, deadline))
    row = pa.ipc.open_stream(_read(pipe.fileno(), length, deadline)).read_all()
    if row.column_names == [_OUT_OF_REACH]:
        raise OutOfReachError(row[_OUT_OF_REACH][0].as_py())
    return row


def _read(descriptor: int, count: int, deadline: float | None) -> bytes:
    """So many bytes. Raises EOFError when there are no more, _Overdue after the deadline."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = bytearray()
    while len(data) < count:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(wait):
            raise _Overdue
        part = os.read(descriptor, min(count - len(data), _READ_BYTES))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


# ----------------------------------------------------------------------------------------------------------- the child


def _send(pipe: IO[bytes], table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    pipe.write(_LENGTH.pack(data.size))
    pipe.write(data)
    pipe.flush()


def _main() -> None:
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no frame
    work = _Work.parse(sys.stdin.buffer.read())
    decode = DecodeImages(work.max_pixels)
    limits = Limits(2 * work.limits.seconds, work.limits.memory)  # for a child without a parent: that one is stricter
    for piece in work.pieces:
        limits.limit_memory()
        try:
            row = read_rows(work.input, [piece], work.columns, tuple(work.allowed))
        except UnavailableError as error:
            _send(frames, pa.table({_OUT_OF_REACH: [str(error)]}))
            return
        _send(frames, row.set_column(row.column_names.index(IMAGE), IMAGE, pa.nulls(1, row[IMAGE].type)))
        _send(frames, decode(row, limits.watch))


if __name__ == "__main__":
    _main()
