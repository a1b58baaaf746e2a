"""Pickles in Parquet files: Ray has column types that hold Python objects, and to load one runs what its author chose.

Ray's tensors may have a pickle for a shape, which Ray loads as soon as pyarrow opens the file, but only where its
environment says so: there we open no file. Columns of objects are pickles that are loaded cell by cell, wherever Ray
is: such a file is left out (reliability.md S3, S4).
"""

from __future__ import annotations

import base64
import os
import re
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from fcn_ray.errors import ConfigError, SchemaError

_PICKLED = (b"ray.data.arrow_pickled_object", b"arrow.py_extension_type")
"""Ray's type of Python objects, and the one that pyarrow had before version 21."""

_ALLOWING = re.compile(r"RAY_DATA_(AUTOLOAD\w*|\w*PICKLE\w*)")
_OFF = {"", "0", "false", "no", "off"}


def check_environment() -> None:
    """Raise ConfigError when this process' environment lets Ray load pickles that come with data."""
    for name, value in os.environ.items():
        if _ALLOWING.fullmatch(name) and value.strip().lower() not in _OFF:
            raise ConfigError(
                f"{name}={value[:20]!r} in the environment lets Ray run code that a Parquet file brings along: unset "
                "it, on every node"
            )


def check_footer(metadata: pq.FileMetaData) -> None:
    """Raise SchemaError when a column of the Parquet file holds pickles, however deep."""
    stored = (metadata.metadata or {}).get(b"ARROW:schema", b"")
    try:
        text = base64.b64decode(stored, validate=True)
    except ValueError:  # what pyarrow reads in it may be another thing than what we read
        raise SchemaError("its Arrow schema (ARROW:schema) is damaged; write the table again") from None
    if any(name in text for name in _PICKLED):
        raise SchemaError("it has columns of pickled Python objects (Ray), which are never opened; store plain types")


def read_footer(file: BinaryIO) -> pq.FileMetaData:
    """Footer of a Parquet file, once it is safe. Raises as the checks above do, and what pyarrow raises."""
    check_environment()
    metadata = pq.read_metadata(file)
    check_footer(metadata)
    return metadata


def open_parquet(file: BinaryIO, **options: Any) -> pq.ParquetFile:
    """pyarrow's ParquetFile, once it is safe; `options` are its own. Raises as `read_footer` does."""
    return pq.ParquetFile(file, metadata=read_footer(file), **options)
