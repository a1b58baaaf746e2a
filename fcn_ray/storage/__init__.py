"""Storage by URI: list, read, and put if absent, which is the only way that results are written.

`path` and `file://path` (storage/local.py), and the object stores (storage/objects.py) `s3://bucket/key` of S3, or of
what speaks its protocol, `gs://bucket/key` of Google Cloud Storage and `az://container/key` of Azure Blob Storage get
the same functions. `replace` exists for files that only inform (status.json): nothing that safety rests on is ever
overwritten. Every function raises StorageError, with the place and the reason, when a store
does not do it; OutOfReachError when nothing is known of the file: it must not be taken for a fact about it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from fcn_ray.errors import StorageError
from fcn_ray.storage import local, objects
from fcn_ray.storage.answers import with_patience
from fcn_ray.storage.uris import Entry, Skipped, join, local_path, scheme_of

__all__ = [
    "SETTINGS",
    "Entry",
    "Skipped",
    "absolute",
    "digest",
    "digest_file",
    "exists",
    "fetch",
    "is_file",
    "is_local",
    "join",
    "list_files",
    "list_folders",
    "local_path",
    "on_disk",
    "open_file",
    "put_if_absent",
    "read_bytes",
    "remove_folder",
    "replace",
    "stat",
    "with_patience",
]


SETTINGS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "STORAGE_EMULATOR_HOST",
    "AZURE_STORAGE_ACCOUNT",
    "FCN_RAY_PATIENCE_SECONDS",
)
"""Environment variables that say where a store is, which every process of a job must share. Never credentials: those
each machine has from its own provider chain."""


def _store(uri: str) -> Any:
    return local if is_local(uri) else objects


def is_local(uri: str) -> bool:
    """True for a place in a file system, of this machine or of a network."""
    return scheme_of(uri) == "file"


def is_file(uri: str) -> bool:
    """True when `uri` is one stored file."""
    found: bool = _store(uri).is_file(uri)
    return found


def exists(uri: str) -> bool:
    """True when `uri` is a stored file or a folder; an object store's folder is there when something is in it."""
    found: bool = _store(uri).exists(uri)
    return found


def stat(uri: str) -> Entry:
    """Size and version of one file; its path is its own name. Raises StorageError when it cannot be had."""
    entry: Entry = _store(uri).stat(uri)
    return entry


def absolute(uri: str) -> str:
    """The one spelling of `uri` that means the same place from every process: absolute, links resolved."""
    found: str = _store(uri).absolute(uri)
    return found


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below the folder `uri`, sorted; a missing folder has none."""
    names: list[str] = _store(uri).list_folders(uri)
    return names


def list_files(uri: str, on_skip: Callable[[Skipped], None] | None = None) -> Iterator[Entry]:
    """Every file below the folder `uri`, in the order of its path's UTF-8 bytes, a folder or page at a time in memory.

    Left out, and told to `on_skip`: names that begin with ".", folders that begin with "_" (by custom other programs'
    unfinished work), links to folders (they may go round in circles), what is no file (sockets, markers of folders),
    and, as faults, names that are not UTF-8 (tables cannot hold them), links that cannot be followed, and what this
    user may not read (but for `lost+found`): without `on_skip` these are StorageErrors. A missing folder is empty.
    """
    found: Iterator[Entry] = _store(uri).list_files(uri, on_skip)
    return found


def read_bytes(uri: str) -> bytes:
    """Content of one file. Raises StorageError when it cannot be read, or is no regular file."""
    data: bytes = _store(uri).read_bytes(uri)
    return data


def fetch(uri: str, limit: int) -> tuple[Entry, bytes | None]:
    """What one file is, and its content: of the version that the entry names. No content above `limit` bytes."""
    found: tuple[Entry, bytes | None] = _store(uri).fetch(uri, limit)
    return found


def open_file(uri: str) -> BinaryIO:
    """One file, open for reading anywhere in it; the caller closes it. Raises StorageError as `read_bytes` does."""
    file: BinaryIO = _store(uri).open_file(uri)
    return file


@contextmanager
def on_disk(uri: str) -> Iterator[Path]:
    """One file as a path of this machine: its own, or that of a copy, which is gone afterwards.

    For what libraries map into memory. Raises StorageError as `read_bytes` does, or when there is no room for a copy.
    """
    if is_local(uri):
        open_file(uri).close()  # raises when it cannot be read
        yield local_path(uri)
        return
    with open_file(uri) as file, TemporaryDirectory(prefix="fcn-ray-") as folder:
        path = Path(folder, "file")
        try:
            with path.open("wb") as copy:
                shutil.copyfileobj(file, copy, 16 << 20)
        except OSError as error:
            raise StorageError(f"{uri} cannot be copied to {folder}: {error.strerror or error}") from error
        yield path


def put_if_absent(uri: str, data: bytes) -> bool:
    """Store `data` whole under `uri` unless something is there: True when written, False when it was there already.

    Readers see all of it or nothing, and a crash at any moment leaves the one or the other. False may also mean that an
    earlier try of this very call was stored and its reply lost: look at what is there.
    """
    written: bool = _store(uri).put_if_absent(uri, data)
    return written


def replace(uri: str, data: bytes) -> None:
    """Store `data` whole under `uri`, over what is there. For files that only inform."""
    _store(uri).replace(uri, data)


def remove_folder(uri: str) -> None:
    """Delete a folder and all below it, as far as it can be deleted. For what nothing rests on any more."""
    _store(uri).remove_folder(uri)


def digest_file(uri: str) -> str:
    """Hexadecimal sha256 of one file, read piece by piece. Raises StorageError as `read_bytes` does."""
    sha256 = hashlib.sha256()
    with open_file(uri) as file:
        while part := file.read(1 << 20):
            sha256.update(part)
    return sha256.hexdigest()


def digest(data: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(data).hexdigest()
