"""What every store has in common: how a place is spelled, and what is known of a stored file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fcn_ray.errors import ConfigError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
OBJECT_SCHEMES = ("s3", "gs", "az")


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file: its path below the listed root (with /), its bytes, its version (changes with the content), and
    when it was modified, in seconds since 1970, if its store says so."""

    path: str
    size: int
    version: str
    modified: float | None = field(default=None, compare=False)


class Skipped(NamedTuple):
    """What a listing leaves out: its path, why, and whether that is a fault, so that something may be missed."""

    path: str
    why: str
    fault: bool = False


def scheme_of(uri: str) -> str:
    """`file`, `s3`, `gs` or `az`. Raises ConfigError for any other, and for URIs that carry credentials."""
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else "file"
    if scheme not in ("file", *OBJECT_SCHEMES):
        raise ConfigError(
            f"{scheme}:// is not a place that can be read or written: use a path, file://, s3://, gs:// or az://"
        )
    if scheme != "file":
        bucket = uri[len(match[0]) :].partition("/")[0] if match else ""
        if not bucket:
            raise ConfigError(f"{uri} names no bucket: {scheme}://BUCKET/KEY")
        if "@" in bucket or ":" in bucket:
            raise ConfigError(
                f"{scheme}://...: credentials do not belong into a URI; the store's own settings hold them"
            )
    return scheme


def split(uri: str) -> tuple[str, str]:
    """(bucket, key) of an object's URI; the key of a bucket as a whole is ""."""
    bucket, _, key = uri[len(scheme_of(uri)) + 3 :].partition("/")
    return bucket, key.rstrip("/")


def split_folder(uri: str) -> tuple[str, str]:
    """(bucket, what the keys of all that lies below it begin with) of an object's URI, taken as a folder."""
    bucket, key = split(uri)
    return bucket, f"{key}/" if key else ""


def local_path(uri: str) -> Path:
    """Path of a local URI; ConfigError for another."""
    scheme = _SCHEME.match(uri)
    if scheme_of(uri) != "file":
        raise ConfigError(f"{uri} must be a local or network path here, not an object store")
    path = uri[len(scheme[0]) :] if scheme else uri
    if scheme and not path.startswith("/"):
        raise ConfigError(f"file://{path.partition('/')[0]}/... names another machine: use file:///PATH")
    return Path(path)


def join(uri: str, *parts: str) -> str:
    """URI of something below `uri`."""
    return "/".join([uri.rstrip("/") or "/", *parts]) if parts else uri


def is_hidden(path: str) -> bool:
    """True for what listings leave out: names that begin with ".", folders that begin with "_", and no name at all."""
    *folders, name = path.split("/")
    return not name or name.startswith(".") or any(folder.startswith((".", "_")) for folder in folders)


def why_hidden(path: str) -> str:
    """What to call that."""
    if not path.rpartition("/")[2]:
        return "no file"
    return "hidden" if any(part.startswith(".") for part in path.split("/")) else "_folder"
