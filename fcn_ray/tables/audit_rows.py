"""The audit of one mask file: is every row what the plan and the row itself promise. Shares no code with the writer."""

from __future__ import annotations

import hashlib
import io
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fcn_ray.tables import schema
from fcn_ray.tables.audit_ids import NamedIds

_PNG_HEADER = struct.Struct(">8s4x4sIIBB")
"""Signature, length (skipped), chunk type, width, height, bit depth, colour type."""
_GREY_8 = (b"\x89PNG\r\n\x1a\n", b"IHDR", 8, 0)

_TYPES = {
    schema.IMAGE_ID: pa.string(),
    schema.PATH: pa.string(),
    schema.ROW: pa.int64(),
    schema.MASK: pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    schema.HEIGHT: pa.int32(),
    schema.WIDTH: pa.int32(),
    schema.CLASS_PIXELS: pa.list_(pa.int64()),
    schema.STATUS: pa.string(),
    schema.ERROR: pa.string(),
    schema.PLAN: pa.int32(),
    schema.MODEL_DIGEST: pa.string(),
    schema.RUN_ID: pa.string(),
}
"""The columns that are checked, and what they are in Arrow."""

_METADATA = {
    b"ARROW:schema",
    b"huggingface",
    *(b"fcn_ray." + name for name in (b"labels", b"run", b"chunk", b"rows", b"seal")),
}
"""The keys of a file's metadata: one that is damaged is another one."""

Problem = tuple[str, str]
"""Kind of finding, and what was found and expected."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a mask file must hold: run, chunk, plan number, (path, row) of each image in order; the ids that pixels may
    have (the label set's, or None when that is not known), and the model digest that the run's other rows have."""

    run_id: str
    chunk_id: str
    plan: int
    keys: Sequence[tuple[str, int]]
    class_ids: int | None
    ignore_id: int | None
    model_digest: str | None


class Labelled(NamedTuple):
    """What an ok row says of its image: height, width, and, if it was in a file that a table names, its version."""

    height: int
    width: int
    version: str | None


@dataclass(slots=True)
class Seen:
    """What a mask file was seen to hold."""

    statuses: Counter[str] = field(default_factory=Counter)
    model_digest: str | None = None
    named: NamedIds | None = None
    """Where users name the ids, those of all files."""
    labelled: list[Labelled | None] | None = None
    """What each row says of its image, None for a bad one, where that is compared with the source."""


def check_mask_file(data: bytes, expected: Expected, seen: Seen) -> Iterator[Problem]:
    """Everything that is wrong with the file; `seen` is filled on the way. A row group at a time in memory."""
    try:
        parquet = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        yield from _check_metadata(parquet, expected)
        found = {field.name: field.type for field in parquet.schema_arrow}
        wrong = [f"{name} is {found.get(name)}, not {kind}" for name, kind in _TYPES.items() if found.get(name) != kind]
        if wrong:
            yield "columns", ", ".join(wrong)
            return
        first = 0
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)  # all columns: every page's checksum is checked
            yield from _check_group(table, first, expected, seen)
            first += table.num_rows
        yield from check_seal(data, parquet.metadata)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield "unreadable", f"cannot be read as Parquet: {error}"
        return
    if first != len(expected.keys):
        yield "rows", f"{first} rows, expected {len(expected.keys)}"


def _check_metadata(parquet: pq.ParquetFile, expected: Expected) -> Iterator[Problem]:
    metadata = parquet.metadata.metadata or {}
    marks = {"run": expected.run_id, "chunk": expected.chunk_id, "rows": str(len(expected.keys))}
    for name, value in marks.items():
        found = metadata.get(f"fcn_ray.{name}".encode(), b"").decode(errors="replace")
        if found != value:
            yield "metadata", f"says that its {name} is {found!r}, expected {value!r}"
    unknown = sorted(metadata.keys() - _METADATA)
    if unknown:
        yield "metadata", f"has metadata {unknown}, which are none of ours"


def check_seal(data: bytes, metadata: pq.FileMetaData) -> Iterator[Problem]:
    """The file has the digest that its metadata has, taken with zeros in its place; older files have none."""
    sealed = (metadata.metadata or {}).get(b"fcn_ray.seal")
    if sealed is None:
        return
    at, content = data.rindex(sealed), memoryview(data)
    found = hashlib.sha256()
    for part in (content[:at], b"0" * 64, content[at + len(sealed) :]):
        found.update(part)
    if found.hexdigest().encode() != sealed:
        yield "seal", f"is not what was written: its digest is {found.hexdigest()}, its seal {sealed!r}"


def _check_group(table: pa.Table, first: int, expected: Expected, seen: Seen) -> Iterator[Problem]:
    for index, row in enumerate(table.select(list(_TYPES)).to_pylist(), first):
        seen.statuses[row[schema.STATUS]] += 1
        if seen.named is not None:
            seen.named.add(row[schema.IMAGE_ID], row[schema.PATH], row[schema.ROW])
        seen.model_digest = seen.model_digest or row[schema.MODEL_DIGEST]
        problems = [*_check_row(row, index, expected, seen.model_digest), *_check_result(row, expected)]
        yield from ((kind, f"row {index}: {message}") for kind, message in problems)
    if seen.labelled is not None:
        seen.labelled += _labelled(table)


def _labelled(table: pa.Table) -> Iterator[Labelled | None]:
    names = (schema.STATUS, schema.HEIGHT, schema.WIDTH, schema.IMAGE_VERSION)
    cells = [table[name].to_pylist() if name in table.column_names else [None] * len(table) for name in names]
    for status, height, width, version in zip(*cells, strict=True):
        yield Labelled(height, width, version) if status == schema.OK else None


def _check_row(row: dict[str, Any], index: int, expected: Expected, model_digest: str | None) -> Iterator[Problem]:
    key = (row[schema.PATH], row[schema.ROW])
    if index < len(expected.keys) and key != expected.keys[index]:
        yield "key", f"is of image {key}, expected {expected.keys[index]}"
    wanted = {
        schema.RUN_ID: expected.run_id,
        schema.PLAN: expected.plan,
        schema.MODEL_DIGEST: expected.model_digest or model_digest,
    }
    for name, value in wanted.items():
        if row[name] != value:
            yield "origin", f"{name} is {row[name]!r}, expected {value!r}"


def _check_result(row: dict[str, Any], expected: Expected) -> Iterator[Problem]:
    """An ok row has a mask and no error, any other an error and no mask."""
    status, mask, error = row[schema.STATUS], row[schema.MASK], row[schema.ERROR]
    if status == schema.OK:
        if error is not None:
            yield "status", f"is ok, but has the error {error!r}"
        if mask is None or mask["bytes"] is None:
            yield "status", "is ok, but has no mask"
        else:
            yield from _check_mask(mask["bytes"], row, expected)
        return
    if status not in schema.BAD_STATUSES:
        yield "status", f"has the unknown status {status!r}"
    if mask is not None:
        yield "status", f"is {status}, but has a mask"
    if not error or len(error) > schema.MAX_ERROR_CHARACTERS:
        yield "status", f"is {status}, and its error text is {'too long' if error else 'missing'}"


def _check_mask(data: bytes, row: dict[str, Any], expected: Expected) -> Iterator[Problem]:
    """The mask is an 8-bit grey PNG of the image's size, of known ids, and is counted right."""
    height, width = row[schema.HEIGHT], row[schema.WIDTH]
    if len(data) < _PNG_HEADER.size:
        yield "mask", f"its mask has {len(data)} bytes, which is no PNG"
        return
    signature, chunk, found_width, found_height, depth, colour = _PNG_HEADER.unpack_from(data)
    if (signature, chunk, depth, colour) != _GREY_8:
        yield "mask", "its mask is no 8-bit grey PNG"
        return
    if (found_height, found_width) != (height, width):
        yield "size", f"its mask is {found_height} x {found_width}, its image {height} x {width} (height x width)"
        return
    try:
        pixels = _decode(data, height * width)
    except (OSError, ValueError, SyntaxError) as error:
        yield "mask", f"its mask cannot be decoded: {error}"
        return
    yield from _check_ids(np.bincount(pixels.ravel(), minlength=256).tolist(), row[schema.CLASS_PIXELS], expected)


def _check_ids(counts: list[int], class_pixels: list[int] | None, expected: Expected) -> Iterator[Problem]:
    classes = expected.class_ids if expected.class_ids is not None else len(class_pixels or ())
    ignored = expected.ignore_id if expected.ignore_id is not None else 255
    unknown = [value for value in range(classes, 256) if counts[value] and value != ignored]
    if unknown:
        yield "ids", f"its mask has ids {unknown}, expected 0 to {classes - 1} or {ignored}"
    if class_pixels != counts[:classes]:
        yield "counts", f"class_pixels is {class_pixels}, the mask has {counts[:classes]}"


def _decode(data: bytes, pixels: int) -> npt.NDArray[np.uint8]:
    """Pixels of a PNG whose header was checked; Pillow's limit is for unknown sizes, so here it follows the header."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(pixels, 1)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()  # the checksums, which decoding does not look at
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image, dtype=np.uint8)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
