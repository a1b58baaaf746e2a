"""What there is: the input's tables and image files in the order of their paths, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa

from fcn_ray import storage
from fcn_ray.errors import ConfigError, SchemaError, StorageError
from fcn_ray.tables.columns import Columns, check_columns, read_table_schema
from fcn_ray.tables.pickles import read_footer
from fcn_ray.tables.schema import trim_error

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLE_SUFFIX = ".parquet"

MAX_NAMED = 1000
"""Most quarantined files that are kept by name; all are counted."""

MAX_ROWS_PER_BYTE = 1000
"""A table that says to have more rows for each byte of its file is taken for damaged: its plan would never end."""

Kind = Literal["parquet", "image"]


@dataclass(frozen=True, slots=True)
class Source:
    """One input file as it was when listed: its path below the input (its name when it is the input), size in bytes,
    and version, which changes with the content. Path and version are the identity of an input."""

    path: str
    kind: Kind
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one input that go into one chunk: `n_rows` rows of a table from `first_row` on, or an image (0 and 1)."""

    path: str
    version: str
    kind: Kind
    first_row: int
    n_rows: int
    size: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An input table that cannot be used: its path, why, and whether it is its columns (else it cannot be opened)."""

    path: str
    reason: str
    schema: bool


@dataclass(slots=True)
class Listing:
    """What a listing left out, so that nothing is ignored in silence. Filled while the listing goes on.

    `skipped` counts files by suffix ("(hidden)" for hidden and linked ones), `quarantined` names the first 1000 tables
    that cannot be used, `n_quarantined` counts all of them.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    n_quarantined: int = 0

    def quarantine(self, path: str, error: Exception) -> None:
        """Note a table that cannot be used."""
        self.n_quarantined += 1
        if len(self.quarantined) < MAX_NAMED:
            self.quarantined.append(Quarantined(path, trim_error(str(error)), isinstance(error, SchemaError)))


def list_inputs(uri: str, listing: Listing | None = None) -> Iterator[Source]:
    """Tables and images of the input (one file, or a folder and all below it), by path, with flat memory.

    Footers are not read here: a job that is run again must not open what it has planned before. Raises ConfigError when
    there is no such input, or when it is a single file of another kind.
    """
    listing = Listing() if listing is None else listing
    if storage.is_file(uri):
        source = _source(storage.stat(uri))
        if source is None:
            raise ConfigError(f"input {uri} must be a folder, a {TABLE_SUFFIX} file or an image, {_suffixes()}")
        yield source
        return
    check_input(uri)
    for entry in storage.list_files(uri, lambda path: listing.skipped.update(["(hidden)"])):
        source = _source(entry)
        if source is None:
            listing.skipped[PurePosixPath(entry.path).suffix.lower() or "(no suffix)"] += 1
        else:
            yield source


def check_input(uri: str) -> None:
    """Raise ConfigError when there is nothing at `uri`: a missing folder would look like an empty one."""
    if not storage.exists(uri):
        raise ConfigError(f"input {uri} does not exist: check the path, and that this machine sees it")


def locate_sources(input_uri: str) -> Callable[[str], str]:
    """The function that tells where the input with a relative path is stored; whether it is one file is asked once."""
    if storage.is_file(input_uri):
        return lambda path: input_uri
    return partial(storage.join, input_uri)


def read_row_groups(uri: str, source: Source, columns: Columns) -> list[int]:
    """Rows in each row group of the table that is stored at `uri`, from its footer.

    Raises StorageError when it cannot be opened (empty, cut off, not Parquet) or its numbers of rows cannot be true,
    SchemaError when its columns do not do.
    """
    try:
        with storage.open_file(uri) as file:
            metadata = read_footer(file)
        check_columns(read_table_schema(metadata), columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"not a readable Parquet file of {source.size} bytes: {error}") from error
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if sum(rows) != metadata.num_rows or min(rows, default=0) < 0 or sum(rows) > MAX_ROWS_PER_BYTE * source.size:
        raise StorageError(
            f"not a readable Parquet file of {source.size} bytes: its footer tells of {metadata.num_rows} rows, of "
            f"{sum(rows)} in {len(rows)} row groups"
        )
    return rows


def _source(entry: storage.Entry) -> Source | None:
    suffix = PurePosixPath(entry.path).suffix.lower()
    if suffix == TABLE_SUFFIX and not PurePosixPath(entry.path).name.startswith("_"):
        return Source(entry.path, "parquet", entry.size, entry.version)
    return Source(entry.path, "image", entry.size, entry.version) if suffix in IMAGE_SUFFIXES else None


def _suffixes() -> str:
    return "one of " + " ".join(IMAGE_SUFFIXES)
