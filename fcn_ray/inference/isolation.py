"""A chunk that took its process down, read and decoded row by row in a process of its own (isolated.py).

When that process dies, or hangs, the row that it was at gets the status `crash` or `timeout`, and another process goes
on behind it. What comes out is what `ReadChunks` and `DecodeImages` leave of the other rows. An error that no picture
is to blame for ends the job, as it would have before: a row stays in the results for ever, and a store comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import IO

import pyarrow as pa

from fcn_ray.errors import IncompleteError
from fcn_ray.inference.frames import ApartWork, Overdue, receive_frame
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.stages import PIXELS_ROOM, DecodeImages, ReadChunks, count_pixel_bytes
from fcn_ray.tables.reading import lost_rows
from fcn_ray.tables.schema import SOURCE_ERROR, SOURCE_MESSAGE
from fcn_ray.tables.sources import Piece

_CHILD = "fcn_ray.inference.isolated"

_START_SECONDS = 600.0
"""Longest time that a child may take to begin: it imports its libraries, perhaps from a network's file system."""


def prepare_apart(read: ReadChunks, pieces: Sequence[Piece], decode: DecodeImages, limits: Limits) -> pa.Table:
    """The decoded rows of a chunk's pieces, exactly as many as the pieces say, whatever they do to a process.

    Raises what the reading raises, as OutOfReachError; IncompleteError when a process does not begin.
    """
    rows = [
        replace(piece, first_row=piece.first_row + row, n_rows=1) for piece in pieces for row in range(piece.n_rows)
    ]
    done: list[pa.Table] = []
    while len(done) < len(rows):  # a child is good for one row at least, be it the one that it dies of
        room = PIXELS_ROOM - sum(map(count_pixel_bytes, done))
        left = rows[len(done) :]
        work = ApartWork(read.input, read.columns, read.allowed, left, decode.max_pixels, room, limits)
        done += _follow_child(work, decode)
    return pa.concat_tables(done, promote_options="default").combine_chunks()


def _follow_child(work: ApartWork, decode: DecodeImages) -> Iterator[pa.Table]:
    """Rows as the child leaves them, the one that it died of included."""
    with _start_child(work) as child:
        assert child.stdout is not None
        _await_start(child, child.stdout)
        for piece in work.pieces:
            known: pa.Table | None = None
            try:
                # Reading has no clock, here as in the first try: each of its requests has its own patience with a
                # store, and how many there are depends on the file.
                known = receive_frame(child.stdout, None)
                decoded = receive_frame(child.stdout, time.monotonic() + work.limits.seconds)
            except Overdue:
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


def _start_child(work: ApartWork) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # Ray may have added to the path
    command = [sys.executable, "-m", _CHILD]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died: its output says so too
        child.stdin.write(json.dumps(asdict(work)).encode())
        child.stdin.close()
    return child


def _await_start(child: subprocess.Popen[bytes], frames: IO[bytes]) -> None:
    """Raise IncompleteError unless the child begins: it has not met a picture yet, so none is to blame."""
    try:
        receive_frame(frames, time.monotonic() + _START_SECONDS)
    except (Overdue, EOFError) as error:
        slow = isinstance(error, Overdue)
        if slow:
            child.kill()
        why = f"in {_START_SECONDS:g} seconds" if slow else f"({_end_of(child)})"
        raise IncompleteError(
            f"a process that decodes images one by one did not begin {why}: its output is in the log of the machine. "
            "What is committed is safe: the same command goes on"
        ) from error


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
