"""What a child that works on a chunk row by row is given, and what it sends back; see isolation.py and isolated.py.

to the child, on stdin       one JSON object, see `ApartWork`
from the child, on stdout    first one frame that says that it has begun; then two for each row: as it was read,
                             without its image; as it was decoded. Or one with an error that no picture is to blame
                             for, and the end. A frame is 8 bytes with its length, and an Arrow stream with one row
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from fcn_ray import errors
from fcn_ray.errors import FcnRayError
from fcn_ray.inference.limits import Limits
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import Input
from fcn_ray.tables.sources import Piece

READY = pa.table({"ready": [True]})
"""The first frame."""

_ERROR = ["error", "said"]
_LENGTH = struct.Struct("<Q")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ApartWork:
    """What a child does: `pieces` of one row each."""

    input: Input
    columns: Columns
    allowed: tuple[str, ...]
    pieces: Sequence[Piece]
    max_pixels: int
    room: int
    """Bytes of pixels that the chunk may still have."""
    limits: Limits

    @classmethod
    def parse(cls, text: bytes) -> ApartWork:
        """From the JSON of its fields."""
        found: dict[str, Any] = json.loads(text)
        carry = found["columns"]["carry"]
        columns = Columns(**found["columns"] | {"carry": carry if isinstance(carry, str) else tuple(carry)})
        pieces, limits = [Piece(**piece) for piece in found["pieces"]], Limits(**found["limits"])
        return cls(**found | {"input": Input(**found["input"]), "columns": columns, "pieces": pieces, "limits": limits})


class Overdue(Exception):  # noqa: N818 - no error of ours, but what a picture did
    """A frame was not there in time."""


def send_frame(pipe: IO[bytes], table: pa.Table) -> None:
    """Write one frame."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    pipe.write(_LENGTH.pack(data.size))
    pipe.write(data)
    pipe.flush()


def send_error(pipe: IO[bytes], error: FcnRayError) -> None:
    """Write the frame from which `receive_frame` raises `error`, or the nearest that errors.py knows of its kind."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    send_frame(pipe, pa.table([[kind.__name__], [str(error)]], names=_ERROR))


def receive_frame(pipe: IO[bytes], deadline: float | None) -> pa.Table:
    """The next frame. Raises EOFError when there is none, Overdue after the deadline (time.monotonic), or the
    FcnRayError that it holds."""
    (length,) = _LENGTH.unpack(_read(pipe.fileno(), _LENGTH.size, deadline))
    row = pa.ipc.open_stream(_read(pipe.fileno(), length, deadline)).read_all()
    if row.column_names == _ERROR:
        (kind,), (said,) = (row[name].to_pylist() for name in _ERROR)
        raise getattr(errors, kind)(said)
    return row


def _read(descriptor: int, count: int, deadline: float | None) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = bytearray()
    while len(data) < count:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(wait):
            raise Overdue
        part = os.read(descriptor, min(count - len(data), _READ_BYTES))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
