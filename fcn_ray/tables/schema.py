"""Every column of the result table, spelled here only, and the status codes of a row (DESIGN 5).

The columns are made by hand rather than by a class, so that the Arrow schema below is the contract that users read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from fcn_ray.errors import printable, redact
from fcn_ray.labels import METADATA_KEY, LabelSet

NAME = "name"
IMAGE_ID = "image_id"
PATH = "path"
ROW = "row"
MASK = "mask"
HEIGHT = "height"
WIDTH = "width"
CLASS_PIXELS = "class_pixels"
MEAN_CONFIDENCE = "mean_confidence"
MIN_CLASS_CONFIDENCE = "min_class_confidence"
STATUS = "status"
ERROR = "error"
FLAGS = "flags"
PLAN = "plan"
MODEL_DIGEST = "model_digest"
RUN_ID = "run_id"

MASK_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""HF image struct: the bytes are an 8-bit single-channel PNG of class ids, 255 = ignore; the path suggests a name."""

_FIRST = [
    pa.field(IMAGE_ID, pa.string(), nullable=False),
    pa.field(PATH, pa.string(), nullable=False),
    pa.field(ROW, pa.int64(), nullable=False),
]
_LAST = [
    pa.field(MASK, MASK_TYPE),
    pa.field(HEIGHT, pa.int32()),
    pa.field(WIDTH, pa.int32()),
    pa.field(CLASS_PIXELS, pa.list_(pa.int64())),
    pa.field(MEAN_CONFIDENCE, pa.float32()),
    pa.field(MIN_CLASS_CONFIDENCE, pa.float32()),
    pa.field(STATUS, pa.string(), nullable=False),
    pa.field(ERROR, pa.string()),
    pa.field(FLAGS, pa.list_(pa.string())),
    pa.field(PLAN, pa.int32(), nullable=False),
    pa.field(MODEL_DIGEST, pa.string(), nullable=False),
    pa.field(RUN_ID, pa.string(), nullable=False),
]
RESERVED = frozenset(field.name for field in _FIRST + _LAST)
"""Names of result columns, which a carried-over input column may not take."""

KEY = "key"
"""Column of rows that come from a tar, beside those of the contract: WebDataset's key."""
IMAGE_VERSION = "image_version"
"""Column of rows of a table of paths: size and etag, or size and time of change, of the file that was read."""

CHUNK_ID = "chunk_id"
CHUNK_ROW = "chunk_row"
CHUNK_ROWS = "chunk_rows"
IMAGE = "image"
SOURCE_ERROR = "source_error"
SOURCE_MESSAGE = "source_message"
PIXELS = "pixels"
"""Decoded image as uint8 bytes, row-major RGB; null for a bad image. Lives between decode and predict only."""
ENCODED = "encoded"
"""A good image as it was read, whose pixels have no room in its chunk: it is decoded again when it is predicted."""
MASK_PNG = "mask_png"
"""The mask of such an image, as it will be stored."""

WORKING_FIELDS = (
    pa.field(CHUNK_ID, pa.string(), nullable=False),
    pa.field(CHUNK_ROW, pa.int64(), nullable=False),
    pa.field(CHUNK_ROWS, pa.int64(), nullable=False),
    pa.field(IMAGE, pa.large_binary()),
    pa.field(SOURCE_ERROR, pa.string()),
    pa.field(SOURCE_MESSAGE, pa.string()),
    pa.field(PIXELS, pa.large_binary()),
    pa.field(ENCODED, pa.large_binary()),
    pa.field(MASK_PNG, pa.large_binary()),
)
"""Columns that rows have on the way only: which chunk a row belongs to, at which place of how many; the encoded image,
and, when it could not be had, a status code and the reason; what becomes of it until it is stored."""
WORKING = frozenset(field.name for field in WORKING_FIELDS)

SCHEMA_VERSION = 1
"""Part of a run's fingerprint: changes when the meaning of a result column does."""

OK = "ok"
BAD_STATUSES = (
    "empty",
    "null",
    "not_image",
    "format_denied",
    "truncated",
    "corrupt",
    "too_big",
    "non_finite",
    "unreadable",
    "changed",
    "crash",
    "timeout",
    "predict",
)
"""Why a row has no mask: what the bytes are (first eight), what reading them met (2), what happened on the way (3)."""

PASSING_STATUSES = BAD_STATUSES[8:]
"""Those that another try may change although the image's bytes are the same."""

MAX_ERROR_CHARACTERS = 500


def result_schema(labels: LabelSet, carried: pa.Schema | None = None) -> pa.Schema:
    """Arrow schema of a result file: the contract's columns in order, with carried-over input columns after `row`.

    The metadata holds the label set, and a `huggingface` key that makes `datasets` open the mask as an image.
    """
    return _described([*_FIRST, *(carried or []), *_LAST], labels)


def labelled_schema(labels: LabelSet, columns: Sequence[str] = (IMAGE, MASK)) -> pa.Schema:
    """Arrow schema of a labelled data set: `name` and the image structs `columns`, with metadata as in a result file.

    The bytes of an image are any encoded image, those of a mask as in a result row.
    """
    return _described([pa.field(NAME, pa.string()), *(pa.field(column, MASK_TYPE) for column in columns)], labels)


def carried_name(name: str) -> str:
    """Name of an input column in the result: its own, or `input_<name>` where the result has its own use for that."""
    return f"input_{name}" if name in RESERVED | WORKING else name


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


def is_image_struct(kind: pa.DataType) -> bool:
    """True for the struct that HF datasets stores an image as: `bytes` (binary) and, mostly, `path`."""
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    inner = {field.name: field.type for field in kind}
    return inner.keys() <= {"bytes", "path"} and is_binary(inner["bytes"]) and _may_be_path(inner.get("path"))


def _may_be_path(kind: pa.DataType | None) -> bool:
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is None or any(test(kind) for test in _TEXTS)


def is_binary(kind: pa.DataType) -> bool:
    """True for the types of plain byte strings."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def trim_error(text: str) -> str:
    """`text` on one line of at most 500 characters, control characters escaped, secrets left out."""
    escaped = printable(redact(text[: 20 * MAX_ERROR_CHARACTERS]))
    return escaped if len(escaped) <= MAX_ERROR_CHARACTERS else escaped[: MAX_ERROR_CHARACTERS - 1] + "…"


def _described(fields: list[pa.Field], labels: LabelSet) -> pa.Schema:
    """Schema of `fields` whose metadata tell the classes, and HF datasets which columns are images."""
    metadata = {METADATA_KEY: labels.to_json()}
    with suppress(_NoFeatureError):
        features = {field.name: _feature(field.type) for field in fields}
        metadata["huggingface"] = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata=metadata)


class _NoFeatureError(Exception):
    """HF datasets has no name for a type, and would not open a file in which it reads a wrong one."""


_FEATURES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}
_FEATURES |= {"date64[ms]": "date64"}


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_dictionary(kind):
        return _feature(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    if is_image_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        raise _NoFeatureError
    return {"dtype": _FEATURES.get(str(kind), str(kind)), "_type": "Value"}
