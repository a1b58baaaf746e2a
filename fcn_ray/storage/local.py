"""The local file system, and network file systems that look like it: `path` or `file://path`."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from fcn_ray.errors import ConfigError, StorageError, printable
from fcn_ray.failpoints import fail_at
from fcn_ray.storage.uris import Entry, Skipped, local_path

_TEMPORARY = ".tmp-"

_FAULTS = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}
"""Why one file or folder cannot be had though all is well with the file system: others can."""

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system without hard links answers."""


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
    except ValueError as error:  # a NUL in the name
        raise StorageError(f"{uri!r} cannot be read: {error}") from error


def absolute(uri: str) -> str:
    """The one spelling of `uri` that means the same place from every process: absolute, links resolved."""
    return local_path(uri).resolve().as_posix()


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below the folder `uri`, sorted; a missing folder has none."""
    try:
        with os.scandir(local_path(uri)) as found:
            return sorted(entry.name for entry in found if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{uri} cannot be listed: {error.strerror or error}") from error


def list_files(uri: str, on_skip: Callable[[Skipped], None] | None = None) -> Iterator[Entry]:
    """Every file below the folder `uri`, in the order of its path's UTF-8 bytes, a folder at a time in memory.

    `storage.list_files` says what is left out.
    """
    root = local_path(uri)
    if root.is_dir():
        yield from _walk(root, "", on_skip or _refuse_faults)


def _refuse_faults(left: Skipped) -> None:
    if left.fault:
        raise StorageError(f"{printable(left.path)} cannot be listed: {left.why}")


def _walk(folder: Path, prefix: str, on_skip: Callable[[Skipped], None]) -> Iterator[Entry]:
    try:
        names = _sorted_names(folder)
    except OSError as error:
        if prefix and error.errno in _FAULTS:
            of_file_system = prefix == "lost+found/"  # at the root of a volume, and nobody's
            on_skip(Skipped(prefix, "hidden") if of_file_system else Skipped(prefix, str(error.strerror), fault=True))
            return
        raise StorageError(f"{folder} cannot be listed: {error.strerror or error}") from error
    if names is None:
        on_skip(Skipped(prefix, "no file"))
        return
    for name in names:
        path = prefix + name
        if name.startswith("."):
            on_skip(Skipped(path, "hidden"))
        elif name.startswith("_") and name.endswith("/"):
            on_skip(Skipped(path, "_folder"))
        elif not _is_utf8(name):
            on_skip(Skipped(path, "its name is not UTF-8, and tables cannot hold it: rename it", fault=True))
        elif name.endswith("/"):
            yield from _walk(folder / name, path, on_skip)
        else:
            found = _look_at(folder / name, path)
            if isinstance(found, Skipped):
                on_skip(found)
            else:
                yield found


def _sorted_names(folder: Path) -> list[str] | None:
    """Names in a folder; folders end in "/", and sort so, which puts the whole listing in the order of full paths. None
    when it is gone by now, as a file may be."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "") for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return sorted(names, key=os.fsencode)


def _look_at(file: Path, path: str) -> Entry | Skipped:
    """What has a name in a folder, or why it is none of its files."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        if file.is_symlink():
            return Skipped(path, "it is a link that leads nowhere", fault=True)
        return Skipped(path, "no file")  # deleted while we listed: not part of the collection
    except OSError as error:
        if error.errno in _FAULTS:
            return Skipped(path, str(error.strerror), fault=True)
        raise StorageError(f"{file} cannot be read: {error.strerror or error}") from error
    if S_ISREG(status.st_mode):
        return _entry(path, status)
    return Skipped(path, "linked folder" if S_ISDIR(status.st_mode) else "no file")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime)


def read_bytes(uri: str) -> bytes:
    """Content of one file. Raises StorageError when it cannot be read, or is no regular file."""
    with open_file(uri) as file:
        try:
            return file.read()
        except OSError as error:
            raise StorageError(f"{uri} cannot be read: {error.strerror or error}") from error


def fetch(uri: str, limit: int) -> tuple[Entry, bytes | None]:
    """One file and its content. Its version is asked after the reading, so that no change can slip in between."""
    with open_file(uri) as file:
        try:  # of the open file, for another one may have its name by now
            data = None if os.fstat(file.fileno()).st_size > limit else file.read()
            return _entry(local_path(uri).name, os.fstat(file.fileno())), data
        except OSError as error:
            raise StorageError(f"{uri} cannot be read: {error.strerror or error}") from error


def open_file(uri: str) -> BinaryIO:
    """One file, open for reading anywhere in it; the caller closes it. Raises StorageError as `read_bytes` does."""
    try:
        path = local_path(uri)
        if path.exists() and not path.is_file():  # a device or a pipe in its place would never end
            raise StorageError(f"{uri} cannot be read: it is not a regular file")
        return open(path, "rb")
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise StorageError(f"{uri!r} cannot be read: {error}") from error


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
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise ConfigError(
                    f"{uri} cannot be written once and for all: its file system has no hard links (exFAT, SMB and "
                    f"mounted buckets often have none; {error.strerror}). Choose another one; to a bucket by its URI"
                ) from error
            raise
        fail_at("put.linked")
        _flush_folder(path.parent)
        fail_at("put.flushed")
        return True
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error.strerror or error}") from error
    finally:
        _discard(temporary)


def replace(uri: str, data: bytes) -> None:
    """Store `data` whole under `uri`, over what is there. For files that only inform."""
    path = local_path(uri)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(temporary, data)
        os.replace(temporary, path)
        fail_at("replace.renamed")
    except OSError as error:
        _discard(temporary)
        raise StorageError(f"{uri} cannot be written: {error.strerror or error}") from error


def remove_folder(uri: str) -> None:
    """Delete a folder and all below it, as far as it can be deleted. For what nothing rests on any more."""
    shutil.rmtree(local_path(uri), ignore_errors=True)


def _discard(path: Path) -> None:
    """Delete a temporary file if it is there; what went wrong before is what the user must hear of."""
    with contextlib.suppress(OSError):
        path.unlink()


def _write_durably(path: Path, data: bytes) -> None:
    fail_at("write.begun")
    with open(path, "xb") as file:
        fail_at("write.opened")
        file.write(data)
        file.flush()
        fail_at("write.written")
        os.fsync(file.fileno())
    fail_at("write.synced")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
