"""Object stores: the functions of storage over a few requests, which s3.py, gcs.py and azure.py make.

A folder is what the keys below it say it is. Every read of an open object is of the version that was there when it was
opened. Writes are one conditional PUT: "already there" may also mean an earlier try of ours whose reply was lost, so
callers look at what is there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.storage import azure, gcs, s3
from fcn_ray.storage.answers import Found, Missing, Taken
from fcn_ray.storage.uris import Entry, Skipped, is_hidden, scheme_of, split, why_hidden

READ_AHEAD = 1 << 18
"""Bytes that a small read of an open object fetches."""


STORES = {"s3": s3, "gs": gcs, "az": azure}
"""Scheme -> the module that makes its requests."""


def _store(uri: str) -> Any:
    return STORES[scheme_of(uri)]


def is_file(uri: str) -> bool:
    """True when `uri` is one object."""
    try:
        return bool(split(uri)[1]) and _store(uri).head(uri) is not None
    except Missing:
        return False


def exists(uri: str) -> bool:
    """True when `uri` is an object, or others lie below it."""
    return is_file(uri) or next(_store(uri).keys(uri), None) is not None


def stat(uri: str) -> Entry:
    """Size and version of one object."""
    return _entry(split(uri)[1].rpartition("/")[2], _store(uri).head(uri))


def _entry(path: str, found: Found) -> Entry:
    return Entry(path, found.size, f"{found.size}-{found.etag.strip(chr(34))}", found.modified)


def absolute(uri: str) -> str:
    """The URI with its scheme in small letters and without a slash at its end.

    Raises ConfigError for one with a query, which might carry a signature.
    """
    if "?" in uri:
        raise ConfigError(f"{uri.partition('?')[0]}?...: give the plain URI, without a query")
    bucket, key = split(uri)
    return f"{scheme_of(uri)}://{bucket}/{key}".rstrip("/")


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below, sorted."""
    return sorted(_store(uri).folders(uri), key=str.encode)


def list_files(uri: str, on_skip: Callable[[Skipped], None] | None = None) -> Iterator[Entry]:
    """Every object below `uri`, in the order of its key's UTF-8 bytes, a page at a time in memory.

    Raises StorageError when the store lists in another order: plans and audits walk several listings side by side.
    """
    before: str | None = None
    for path, found in _store(uri).keys(uri):
        if before is not None and path.encode() <= before.encode():
            raise StorageError(
                f"{uri}: this store lists {path!r} after {before!r}, not in the order of bytes, as stores with real "
                "folders do (hierarchical namespaces, directory buckets): use a store with plain keys, or other names"
            )
        before = path
        if not is_hidden(path):
            yield _entry(path, found)
        elif on_skip:
            on_skip(Skipped(path, why_hidden(path)))


def read_bytes(uri: str) -> bytes:
    """All of one object."""
    data: bytes = _store(uri).get(uri)
    return data


def fetch(uri: str, limit: int) -> tuple[Entry, bytes | None]:
    """One object and its content, in one request."""
    found, data = _store(uri).fetch(uri, limit)
    return _entry(split(uri)[1].rpartition("/")[2], found), data


def open_file(uri: str) -> BinaryIO:
    """One object, open for reading anywhere in it."""
    return io.BufferedReader(_Object(uri, _store(uri).head(uri)), READ_AHEAD)


class _Object(io.RawIOBase):
    """Reads ranges of one version of an object."""

    def __init__(self, uri: str, found: Found) -> None:
        super().__init__()
        self._uri, self._found, self._at = uri, found, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._found.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = min(len(view), self._found.size - self._at)
        if count <= 0:
            return 0
        try:
            data = _store(self._uri).get(self._uri, (self._at, count), self._found.etag)
        except Taken as error:
            raise StorageError(f"{self._uri} changed while it was read") from error
        if len(data) != count:
            raise StorageError(f"{self._uri}: the store answers {len(data)} bytes where {count} were asked for")
        view[:count] = data
        self._at += count
        return count


def put_if_absent(uri: str, data: bytes) -> bool:
    """Store `data` whole under `uri` unless something is there."""
    try:
        _store(uri).put(uri, data, if_absent=True)
    except Taken:
        return False
    _check_kept(uri, data)
    return True


def replace(uri: str, data: bytes) -> None:
    """Store `data` whole under `uri`, over what is there."""
    _store(uri).put(uri, data, if_absent=False)


def _check_kept(uri: str, data: bytes) -> None:
    if (stored := stat(uri).size) != len(data):
        raise StorageError(
            f"{uri} has {stored} bytes after {len(data)} were sent: this store does not keep what it is given"
        )


def remove_folder(uri: str) -> None:
    """Delete all below `uri`, as far as it can be deleted."""
    store = _store(uri)
    try:
        for path, _ in store.keys(uri):
            if path and not path.endswith("/"):  # else the marker of a folder, whose URI would be that of an object
                store.delete(f"{uri.rstrip('/')}/{path}")
    except StorageError:
        return
