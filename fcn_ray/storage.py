"""Storage by URI: list, read, and put if absent, which is the only way that results are written.

Today the local file system (`path` or `file://path`); object stores get the same functions. `replace` exists for files
that only inform (status.json): nothing that safety rests on is ever overwritten.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fcn_ray.errors import ConfigError, StorageError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file: its path below the listed root (with /), its bytes, its version (changes with the content)."""

    path: str
    size: int
    version: str


def local_path(uri: str) -> Path:
    """Path of a local URI; ConfigError for schemes that are not supported."""
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return Path(uri)
    if scheme[1].lower() == "file":
        return Path(uri[len(scheme[0]) :])
    raise ConfigError(f"{uri}: the scheme {scheme[1]}:// is not supported yet; use a local or network path, or file://")


def join(uri: str, *parts: str) -> str:
    """URI of something below `uri`."""
    return "/".join([uri.rstrip("/") or "/", *parts]) if parts else uri


def is_file(uri: str) -> bool:
    """True when `uri` is one stored file."""
    return local_path(uri).is_file()


def exists(uri: str) -> bool:
    """True when `uri` is a stored file or a folder."""
    return local_path(uri).exists()


def stat(uri: str) -> Entry:
    """Size and version of one file; its path is its own name. Raises StorageError when it cannot be had."""
    path = local_path(uri)
    try:
        return _entry(path.name, path.stat())
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error.strerror or error}") from error


def list_files(uri: str) -> Iterator[Entry]:
    """Every file below the folder `uri`, in the order of its path's UTF-8 bytes, a folder at a time in memory.

    Names that begin with "." or "_" are left out, links to folders are not followed. A missing folder is empty.
    """
    root = local_path(uri)
    if root.is_dir():
        yield from _walk(root, "")


def _walk(folder: Path, prefix: str) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as found:
            # A folder sorts as its name with "/", so that the whole listing is in the order of full paths.
            entries = sorted(
                ((os.fsencode(e.name) + (b"/" if e.is_dir(follow_symlinks=False) else b""), e) for e in found),
                key=lambda pair: pair[0],
            )
    except OSError as error:
        raise StorageError(f"{folder} cannot be listed: {error.strerror or error}") from error
    for key, entry in entries:
        if entry.name.startswith((".", "_")):
            continue
        if key.endswith(b"/"):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        elif entry.is_file():
            try:
                yield _entry(prefix + entry.name, entry.stat())
            except FileNotFoundError:
                continue  # deleted while we listed: it is not part of the collection


def _entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def read_bytes(uri: str) -> bytes:
    """Content of one file. Raises StorageError when it cannot be read."""
    try:
        return local_path(uri).read_bytes()
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error.strerror or error}") from error


def put_if_absent(uri: str, data: bytes) -> bool:
    """Store `data` whole under `uri` unless something is there: True when written, False when it was there already.

    Readers see all of it or nothing, and a crash at any moment leaves the one or the other: the bytes are flushed to
    disk under a temporary name, which is then linked to the final one (link fails when the name is taken).
    """
    path = local_path(uri)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _flush_folder(path.parent)
        return True
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def replace(uri: str, data: bytes) -> None:
    """Store `data` whole under `uri`, over what is there. For files that only inform."""
    path = local_path(uri)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{uri} cannot be written: {error.strerror or error}") from error


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(data: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(data).hexdigest()
