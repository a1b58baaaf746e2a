"""What there is: the input's tables, tars and images in the order of their paths, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

from fcn_ray import storage
from fcn_ray.errors import ConfigError, SchemaError, StorageError, printable
from fcn_ray.tables.inputs import Input, check_input, folder_of, nothing_fits, place_of, understand_input
from fcn_ray.tables.lists import read_list, stat_listed
from fcn_ray.tables.patterns import fits, fits_below, parse_pattern
from fcn_ray.tables.schema import trim_error

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLE_SUFFIX = ".parquet"
TAR_SUFFIX = ".tar"
_PACKED_TARS = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Of these no part can be read by itself."""

MAX_NAMED = 1000
"""Most quarantined files that are kept by name; all are counted."""

MAX_SUFFIXES, _LONGEST_SUFFIX = 100, 20
"""Most suffixes, and characters of one, that left out files are counted by."""

_TWICE, _OTHER = "(listed twice)", "(other)"

Kind = Literal["parquet", "image", "tar"]


@dataclass(frozen=True, slots=True)
class Source:
    """One input file as it was when listed: its path below the input (its name when it is the input), size in bytes,
    version, which changes with the content, and when it was modified. Path and version are the identity of an input."""

    path: str
    kind: Kind
    size: int
    version: str
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one input that go into one chunk: `n_rows` of a table or tar from `first_row` on, or an image (0 and 1).

    `size` is in bytes: of the image, or about that of those rows. (Plans of older versions have the size of the whole
    file of a table.) In a tar row `offset_row` begins at byte `offset`, so a reader need not start at the first row;
    both are 0 of what is no tar.
    """

    path: str
    version: str
    kind: Kind
    first_row: int
    n_rows: int
    size: int
    offset: int = 0
    offset_row: int = 0


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An input that cannot be used: its path, why, and whether it is its columns (else it cannot be opened)."""

    path: str
    reason: str
    schema: bool


@dataclass(slots=True)
class Listing:
    """What a listing left out, so that nothing is ignored in silence. Filled while the listing goes on.

    `skipped` counts files by suffix, and by what is in brackets: "(hidden)", "(_folder)", "(linked folder)",
    "(no file)", "(other)", and "(listed twice)" for lines of a list. `quarantined` names the first 1000 inputs that
    cannot be used, `n_quarantined` counts all of them, `older` the new inputs that `since` leaves out, `returned` those
    that are again what they were before the newest plan that has them.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    quarantined: list[Quarantined] = field(default_factory=list)
    n_quarantined: int = 0
    older: int = 0
    returned: int = 0

    def skip(self, what: str) -> None:
        """Count a file under what it is; when there are very many suffixes, what is new is "(other)"."""
        known = what in self.skipped or len(self.skipped) < MAX_SUFFIXES
        self.skipped[what if known else _OTHER] += 1

    def leave_out(self, left: storage.Skipped) -> None:
        """Count what a folder's listing leaves out; what is a fault, and may be input or hold some, is named."""
        if not left.fault:
            self.skip(f"({left.why})")
        elif left.path.endswith("/") or _kind(left.path.rpartition("/")[2].lower()):
            self.quarantine(printable(left.path), StorageError(left.why))
        else:
            self.skip(_suffix(printable(left.path)))

    def quarantine(self, path: str, error: Exception) -> None:
        """Note an input that cannot be used."""
        self.n_quarantined += 1
        if len(self.quarantined) < MAX_NAMED:
            self.quarantined.append(Quarantined(path, trim_error(str(error)), isinstance(error, SchemaError)))


def list_inputs(uri: str, listing: Listing | None = None) -> Iterator[Source]:
    """Tables, tars and images of the input (tables/inputs.py says what that may be), by path, with flat memory.

    Footers are not read here: a job that is run again must not open what it has planned before. Raises ConfigError when
    there is no such input, or when it is a single file of another kind.
    """
    listing = Listing() if listing is None else listing
    found = understand_input(uri)
    if found.kind == "file":
        source = _source(storage.stat(uri))
        if source is None:
            raise ConfigError(
                f"input {uri} must be a folder, a {TABLE_SUFFIX} or {TAR_SUFFIX} file (not packed), or an image, "
                f"one of {' '.join(IMAGE_SUFFIXES)}"
            )
        yield source
        return
    listed = {"folder": _list_folder, "pattern": _list_matching, "list": _list_named}[found.kind]
    for entry in listed(found, listing):
        source = _source(entry)
        if source is None:
            listing.skip(_suffix(entry.path))
        else:
            yield source


def _list_folder(found: Input, listing: Listing) -> Iterator[storage.Entry]:
    check_input(found.uri)
    return storage.list_files(found.uri, listing.leave_out)


def _list_matching(found: Input, listing: Listing) -> Iterator[storage.Entry]:
    """The files that fit a pattern; it says nothing of the others, so they are not counted as left out."""
    pattern, empty = parse_pattern(found.pattern), True

    def skip(left: storage.Skipped) -> None:
        folder = left.path.removesuffix("/")
        if fits(pattern, folder) or (left.fault and folder != left.path and fits_below(pattern, folder)):
            listing.leave_out(left)

    for entry in storage.list_files(found.uri, skip):
        if fits(pattern, entry.path):
            empty = False
            yield entry
    if empty:
        raise ConfigError(nothing_fits(found))


def _list_named(found: Input, listing: Listing) -> Iterator[storage.Entry]:
    """The files that a list names, under the names that it gives them; those that are not there are quarantined."""
    lines = read_list(found.uri, lambda line: listing.skip(_TWICE))
    locate = partial(place_of, folder=folder_of(found.uri))
    for path, entry in stat_listed(lines, locate):
        if isinstance(entry, Exception):
            listing.quarantine(path, entry)
        else:
            yield replace(entry, path=path)


def _source(entry: storage.Entry) -> Source | None:
    """The input that a file is, by its name; None when it is none."""
    kind = _kind(entry.path[entry.path.rfind("/") + 1 :].lower())
    return None if kind is None else Source(entry.path, kind, entry.size, entry.version, entry.modified)


def _kind(name: str) -> Kind | None:
    if name.rfind(".") < 1:
        return None
    if name.endswith(IMAGE_SUFFIXES):
        return "image"
    if name.startswith("_"):
        return None
    if name.endswith(TABLE_SUFFIX):
        return "parquet"
    return "tar" if name.endswith(TAR_SUFFIX) else None


def _suffix(path: str) -> str:
    packed = next((suffix for suffix in _PACKED_TARS if path.lower().endswith(suffix)), "")
    suffix = packed or PurePosixPath(path).suffix.lower()
    return (suffix or "(no suffix)") if len(suffix) <= _LONGEST_SUFFIX else _OTHER
