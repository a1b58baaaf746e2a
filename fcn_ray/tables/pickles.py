"""Pickles in Parquet files: Ray has column types that hold Python objects, and to load one runs what its author chose.

They are found in the text of the schema, before pyarrow makes a type of it: Ray registers its types with pyarrow, which
then gives them what the file says. Ray itself loads pickles only where its environment tells it to, and we do not run
there at all (reliability.md S3, S4).
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

_RAY_TYPE = b"ray.data.arrow_"
"""Tensors have types of Ray's too, whose shapes old versions stored as pickles."""

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
    """Raise SchemaError when a column of the Parquet file holds pickles, however deep; ConfigError: see above."""
    stored = (metadata.metadata or {}).get(b"ARROW:schema", b"")
    try:
        text = base64.b64decode(stored, validate=True)
    except ValueError:  # what pyarrow reads in it may be another thing than what we read
        raise SchemaError("its Arrow schema (ARROW:schema) is damaged; write the table again") from None
    if any(name in text for name in _PICKLED):
        raise SchemaError("it has columns of pickled Python objects (Ray), which are never opened; store plain types")
    if _RAY_TYPE in text:
        check_environment()


def open_parquet(file: BinaryIO, **options: Any) -> pq.ParquetFile:
    """pyarrow's ParquetFile, once its footer is safe; `options` are its own. Raises as `check_footer` does."""
    metadata = pq.read_metadata(file)
    check_footer(metadata)
    file.seek(0)
    return pq.ParquetFile(file, metadata=metadata, **options)
