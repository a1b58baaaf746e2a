"""Which columns of an input table are read: the image, the id, and those carried over into the result."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.errors import SchemaError
from fcn_ray.tables import schema

PATH_COLUMNS = ("image", "path", "image_path")
"""String columns that are taken for image paths without being asked for."""

_PICKLED = b"ray.data.arrow_pickled_object"
"""Ray's extension type for Python objects: reading it can run code that the file's author chose (reliability.md S4)."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The job's choice of input columns, as in SegmentConfig: `image_column`, `id_column`, `carry`."""

    image: str | None = None
    id: str | None = None
    carry: Literal["plain", "none"] | tuple[str, ...] = "plain"


def read_table_schema(metadata: pq.FileMetaData) -> pa.Schema:
    """Arrow schema of a Parquet file. Raises SchemaError for what is not safe, or not clear, to read."""
    stored = (metadata.metadata or {}).get(b"ARROW:schema", b"")
    if _PICKLED in base64.b64decode(stored):
        raise SchemaError("it has columns of pickled Python objects (Ray), which are never opened; store plain types")
    arrow = metadata.schema.to_arrow_schema()
    repeated = sorted({name for name in arrow.names if arrow.names.count(name) > 1})
    if repeated:
        raise SchemaError(f"columns have the same name: {_list(repeated)}; rename them")
    return arrow


def check_columns(arrow: pa.Schema, columns: Columns) -> None:
    """Raise SchemaError, which says what is there, unless every column that the job needs can be read."""
    find_image_column(arrow, columns.image)
    if columns.id is not None:
        kind = plain_type(_field(arrow, columns.id, "id").type)
        if not (is_text(kind) or pa.types.is_integer(kind)):
            raise SchemaError(f"id column {columns.id!r} has type {kind}; expected strings or integers")
    carried_columns(arrow, columns)


def find_image_column(arrow: pa.Schema, wanted: str | None = None) -> str:
    """Name of the column that holds the images: bytes, HF image structs, or paths.

    The one called `wanted`, else "image", else the only column of bytes or image structs ("mask" is never guessed),
    else strings called "path" or "image_path". Raises SchemaError.
    """
    if wanted is not None:
        kind = _field(arrow, wanted, "image").type
        if not (_holds_images(kind) or is_text(plain_type(kind))):
            raise SchemaError(
                f"image column {wanted!r} has type {kind}; expected binary, struct<bytes, path> or string (paths)"
            )
        return wanted
    holding = [field.name for field in arrow if _holds_images(field.type) and field.name != schema.MASK]
    paths = [name for name in PATH_COLUMNS if name in arrow.names and is_text(plain_type(arrow.field(name).type))]
    if schema.IMAGE in holding + paths:
        return schema.IMAGE
    if len(holding) > 1:
        raise SchemaError(f"columns {_list(holding)} could all hold the images; name one with image_column")
    if not holding + paths:
        found = ", ".join(f"{field.name}: {field.type}" for field in arrow) or "no columns"
        raise SchemaError(f"no column holds images, found {found}; name one of binary, struct<bytes, path> or strings")
    return str((holding + paths)[0])


def carried_columns(arrow: pa.Schema, columns: Columns) -> dict[str, pa.Field]:
    """Input column -> its field in the result, in the file's order; types are plain: no dictionaries, no extensions."""
    if isinstance(columns.carry, tuple):
        names: Sequence[str] = [_field(arrow, name, "carried").name for name in columns.carry]
    elif columns.carry == "none":
        names = []
    else:
        names = [field.name for field in arrow if _is_plain(field.type)]
    fields: dict[str, pa.Field] = {}
    for name in names:
        new = schema.carried_name(name)
        while new != name and new in arrow.names:  # the input has a column called input_<name> too
            new = f"input_{new}"
        fields[name] = pa.field(new, plain_type(arrow.field(name).type))
    return fields


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without dictionary, extension or view around them."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _holds_images(kind: pa.DataType) -> bool:
    plain = plain_type(kind)
    return schema.is_binary(plain) or schema.is_image_struct(plain)


def _is_plain(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_union(kind):
        return False
    kind = plain_type(kind)
    if schema.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return False
    return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))


def is_text(kind: pa.DataType) -> bool:
    """True for string columns."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _field(arrow: pa.Schema, name: str, role: str) -> pa.Field:
    if name not in arrow.names:
        raise SchemaError(f"{role} column {name!r} is missing, found {_list(arrow.names)}")
    return arrow.field(name)


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no columns"
