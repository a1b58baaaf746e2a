"""The child of isolation.py: it reads and decodes rows one by one, and tells of each before it begins the next."""

from __future__ import annotations

import os
import sys
from typing import IO

import pyarrow as pa

from fcn_ray.errors import FcnRayError
from fcn_ray.inference.frames import READY, ApartWork, send_error, send_frame
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.stages import DecodeImages, count_pixel_bytes
from fcn_ray.tables.reading import read_rows
from fcn_ray.tables.schema import IMAGE


def _main() -> None:
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no frame
    work = ApartWork.parse(sys.stdin.buffer.read())
    send_frame(frames, READY)
    try:
        _prepare_rows(work, frames)
    except FcnRayError as error:  # what is a picture's fault is a row, or the end of this process
        send_error(frames, error)


def _prepare_rows(work: ApartWork, frames: IO[bytes]) -> None:
    decode = DecodeImages(work.max_pixels)
    limits = Limits(2 * work.limits.seconds, work.limits.memory)  # for a child without a parent: that one is stricter
    room = work.room
    for piece in work.pieces:
        limits.limit_memory()
        row = read_rows(work.input, [piece], work.columns, tuple(work.allowed))
        send_frame(frames, row.set_column(row.column_names.index(IMAGE), IMAGE, pa.nulls(1, row[IMAGE].type)))
        decoded = decode(row, limits.watch, room)
        room -= count_pixel_bytes(decoded)
        send_frame(frames, decoded)


if __name__ == "__main__":
    _main()
