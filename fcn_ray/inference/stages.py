"""The stages around the network: read and decode a chunk before it, encode and commit it after it.

Each is a plain callable on a pyarrow table that is one chunk from end to end; docstrings say which columns it reads,
adds and drops. Images travel as uint8 bytes with their height and width. A row that went wrong keeps its status.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fcn_ray.images.codec import ImageError, decode_image, encode_mask
from fcn_ray.labels import LabelSet
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt, commit_chunk, read_receipt
from fcn_ray.tables.inputs import Input
from fcn_ray.tables.plan import read_chunk
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.reading import label_chunk, read_rows
from fcn_ray.tables.runs import Run
from fcn_ray.tables.schema import (
    CHUNK_ID,
    CHUNK_ROWS,
    ENCODED,
    ERROR,
    FLAGS,
    HEIGHT,
    IMAGE,
    MASK,
    MASK_PNG,
    MASK_TYPE,
    MODEL_DIGEST,
    OK,
    PATH,
    PIXELS,
    ROW,
    RUN_ID,
    SOURCE_ERROR,
    SOURCE_MESSAGE,
    STATUS,
    WIDTH,
    trim_error,
)
from fcn_ray.tables.sources import TABLE_SUFFIX, TAR_SUFFIX


@dataclass(frozen=True, slots=True)
class ReadChunks:
    """First stage. Reads: one row, the ChunkRef of a chunk. Leaves: the rows of that chunk, see tables.reading."""

    run: str
    input: Input
    columns: Columns
    allowed: tuple[str, ...] = ()
    """Prefixes beside the input that tables and links may lead to, absolute."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of the one chunk that the block names."""
        (row,) = table.to_pylist()
        chunk = ChunkRef(**row)
        rows = read_rows(self.input, read_chunk(self.run, chunk), self.columns, self.allowed)
        return label_chunk(rows, chunk.chunk_id, chunk.plan)


PIXELS_ROOM = 500_000_000
"""Bytes of pixels that a chunk has on the way, however large or many its images are."""

Watch = Callable[[], AbstractContextManager[Callable[[], None]]]
"""As `Limits.watch`."""


def _unwatched() -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


def count_pixel_bytes(table: pa.Table) -> int:
    """Bytes of all pixels in the rows."""
    return int(pc.sum(pc.binary_length(table[PIXELS])).as_py() or 0)


class _Decoded(NamedTuple):
    status: str
    error: str | None
    pixels: np.ndarray | None = None
    encoded: bytes | None = None
    flags: Sequence[str] = ()


def _join(images: list[np.ndarray | None]) -> pa.Array:
    """A large_binary array of their row-major bytes. Empties the list meanwhile: they need not be there twice."""
    ends = np.cumsum([0] + [0 if image is None else image.nbytes for image in images])
    data = pa.allocate_buffer(int(ends[-1]))
    flat = np.frombuffer(data, np.uint8)
    present = pa.array([image is not None for image in images], pa.bool_())
    for row, image in enumerate(images):
        if image is not None:
            flat[ends[row] : ends[row + 1]] = image.reshape(-1)
            images[row] = None
    buffers = [present.buffers()[1], pa.py_buffer(ends.astype(np.int64)), data]
    return pa.Array.from_buffers(pa.large_binary(), len(images), buffers)


@dataclass(frozen=True, slots=True)
class DecodeImages:
    """Every image as pixels, or the reason why not.

    Reads: image, source_error, source_message. Adds: pixels, encoded, height, width, status, error, flags. Drops: those
    read.
    """

    max_pixels: int

    def __call__(self, table: pa.Table, watch: Watch = _unwatched, room: int = PIXELS_ROOM) -> pa.Table:
        """The stage. Images are decoded within `watch()`, whose function is called before each. The chunk has `room`
        bytes of pixels; a good image that does not fit travels encoded."""
        rows: list[_Decoded] = []
        images: list[np.ndarray | None] = []
        shapes: list[tuple[int | None, ...]] = []
        with watch() as begin_image:
            for cells in zip(table[IMAGE], table[SOURCE_ERROR], table[SOURCE_MESSAGE], strict=True):
                data, source_error, message = (cell.as_py() for cell in cells)
                row = self._decode(begin_image, data, source_error, message)
                shapes.append((None, None) if row.pixels is None else row.pixels.shape)
                size = 0 if row.pixels is None else row.pixels.nbytes
                if size > room:
                    row = row._replace(pixels=None, encoded=data)
                else:
                    room -= size
                images.append(row.pixels)
                rows.append(row._replace(pixels=None))
        added = {
            PIXELS: _join(images),
            ENCODED: pa.array([row.encoded for row in rows], pa.large_binary()),
            HEIGHT: pa.array([shape[0] for shape in shapes], pa.int32()),
            WIDTH: pa.array([shape[1] for shape in shapes], pa.int32()),
            STATUS: pa.array([row.status for row in rows], pa.string()),
            ERROR: pa.array([row.error for row in rows], pa.string()),
            FLAGS: pa.array([row.flags for row in rows], pa.list_(pa.string())),
        }
        return replace_columns(table, added, drop=[IMAGE, SOURCE_ERROR, SOURCE_MESSAGE])

    def _decode(
        self, begin_image: Callable[[], None], data: bytes | None, source_error: str | None, message: str | None
    ) -> _Decoded:
        if source_error is not None:
            return _Decoded(source_error, trim_error(message or source_error))
        begin_image()
        try:
            decoded = decode_image(data, self.max_pixels)
        except ImageError as error:
            return _Decoded(error.status, trim_error(str(error)))
        return _Decoded(OK, None, decoded.pixels, flags=decoded.flags)


@dataclass(frozen=True, slots=True)
class CommitChunks:
    """Last stage. Reads: the finished rows of one chunk. Puts them into storage, once. Leaves: one receipt row."""

    run: Run
    labels: LabelSet
    model_digest: str

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encode the masks, commit the chunk; of one that is there, only read what is stored."""
        if table[STATUS][0].as_py() == _COMMITTED:
            receipt = read_receipt(self.run, table[CHUNK_ID][0].as_py(), table[CHUNK_ROWS][0].as_py())
        else:
            receipt = commit_chunk(self.run, finish_rows(table, self.labels, self.model_digest, self.run.run_id))
        return pa.table({"receipt": [json.dumps(asdict(receipt))]})


_COMMITTED = "committed"
"""Status of a row that stands for a whole chunk; such a row is never stored."""


def mark_committed(chunk: ChunkRef) -> pa.Table:
    """What goes through the pipeline in the place of a chunk that is there: no stage finds an image in it."""
    nothing = {
        PIXELS: pa.large_binary(),
        ENCODED: pa.large_binary(),
        HEIGHT: pa.int32(),
        WIDTH: pa.int32(),
        ERROR: pa.string(),
    }
    columns = {name: pa.nulls(1, kind) for name, kind in nothing.items()}
    return pa.table({CHUNK_ID: [chunk.chunk_id], CHUNK_ROWS: [chunk.n_rows], STATUS: [_COMMITTED]} | columns)


def read_receipts(table: pa.Table) -> list[Receipt]:
    """What `CommitChunks` left, on the driver."""
    return [Receipt(**json.loads(text)) for text in table["receipt"].to_pylist()]


def finish_rows(table: pa.Table, labels: LabelSet, model_digest: str, run_id: str) -> pa.Table:
    """Rows with raw masks -> rows as the result schema has them, the chunk's working columns kept in front."""
    height, width = table[HEIGHT].to_pylist(), table[WIDTH].to_pylist()
    ready = table[MASK_PNG].to_pylist()
    masks = [
        {"bytes": png or _encode(cell, h, w), "path": _mask_name(path, row)} if png or cell.is_valid else None
        for cell, png, h, w, path, row in zip(
            table[MASK], ready, height, width, table[PATH].to_pylist(), table[ROW].to_pylist(), strict=True
        )
    ]
    added = {
        MASK: pa.array(masks, MASK_TYPE),
        MODEL_DIGEST: pa.array([model_digest] * len(table), pa.string()),
        RUN_ID: pa.array([run_id] * len(table), pa.string()),
    }
    return replace_columns(table, added)


def _encode(cell: pa.Scalar, height: int, width: int) -> bytes:
    return encode_mask(np.frombuffer(cell.as_buffer(), np.uint8).reshape(height, width))


def _mask_name(path: str, row: int) -> str:
    """What a viewer may call the mask: a name in the image's place, never a path that leaves it."""
    stem = path.rpartition("/")[2].rpartition(".")[0] or path.rpartition("/")[2]
    return f"{stem}-{row}.png" if path.lower().endswith((TABLE_SUFFIX, TAR_SUFFIX)) else f"{stem}.png"


def replace_columns(table: pa.Table, columns: Mapping[str, Any], drop: Sequence[str] = ()) -> pa.Table:
    """`table` without the columns in `drop`, with `columns` added, over those of the same name."""
    names = [name for name in table.column_names if name not in drop and name not in columns]
    kept = {name: table[name] for name in names}
    types = {name: table[name].type for name in columns if name in table.column_names}
    added = {
        name: value if isinstance(value, pa.Array | pa.ChunkedArray) else pa.array(value, types[name])
        for name, value in columns.items()
    }
    return pa.table(kept | added)
