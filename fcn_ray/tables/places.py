"""Where an image may lie that a table, or a link in the input's folder, names: what data says is no order of ours.

Whoever wrote a table must not choose which files of a worker's machine, or which hosts of its network, are read. So a
path leads below the folder of the input (of the table, when a list names it), or into its bucket, or below a prefix
that the user allows (`allow_paths`).
Nothing is opened, and no request is made, before that is sure; a message tells nothing of what is there.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass

from fcn_ray import storage
from fcn_ray.errors import FcnRayError, StorageError, redact_places
from fcn_ray.storage.uris import scheme_of, split
from fcn_ray.tables.inputs import Input, folder_of


@dataclass(frozen=True, slots=True)
class Places:
    """Folders, prefixes or buckets, spelled as `storage.absolute` does, below which images are read."""

    prefixes: tuple[str, ...]

    @classmethod
    def around(cls, where: Input, allowed: tuple[str, ...] = ()) -> Places:
        """The folder of the input (that of the file, when it is one) or its bucket, and `allowed` prefixes.

        A file that the user names may be a link: where it leads is what is meant.
        """
        own = where.uri if where.kind in ("folder", "pattern") else folder_of(where.uri)
        named = (storage.absolute(where.uri),) if where.kind == "file" else ()
        return cls((_whole(own), *named, *(storage.absolute(prefix) for prefix in allowed)))

    def beside(self, folder: str) -> Places:
        """These places, and the folder of a table, or its bucket."""
        return Places((*self.prefixes, _whole(folder)))

    def resolve(self, path: str, folder: str) -> str:
        """URI of the image that a table in `folder` calls `path`. Raises StorageError unless it may be read."""
        if "://" not in path:
            return self.check(path if path.startswith("/") else storage.join(folder, path), path)
        if (shown := redact_places(path)) != path:  # any other query is taken for a part of the key, which it may be
            raise StorageError(f"{shown} is not read: give the plain URI, without credentials or a signature")
        return self.check(path, path)

    def check(self, uri: str, name: str) -> str:
        """`uri` with its links resolved. Raises StorageError, which calls it `name`, unless it may be read."""
        try:
            found = os.path.realpath(storage.local_path(uri)) if storage.is_local(uri) else _plain_key(uri)
        except (FcnRayError, ValueError) as error:  # another scheme, a host, credentials; a NUL in the name
            raise StorageError(f"{name!r} is not read: {error}") from error
        if any(f"{found}/".startswith(f"{prefix.rstrip('/')}/") for prefix in self.prefixes):
            return found
        raise StorageError(
            f"{name!r} lies outside of the input ({self.prefixes[0]}) and is not read; allow_paths: [PREFIX, ...] lets "
            "tables and links name images elsewhere"
        )

    def check_file(self, uri: str) -> str:
        """`uri` of a file that was listed: only a link can lead elsewhere. Raises StorageError as `check` does."""
        if storage.is_local(uri) and os.path.islink(storage.local_path(uri)):
            return self.check(uri, uri.rpartition("/")[2])
        return uri


def spell_places(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """The prefixes of `allow_paths`, so that every worker takes them for the same places."""
    return tuple(sorted(storage.absolute(prefix) for prefix in prefixes))


def _whole(folder: str) -> str:
    """The folder, or the whole bucket that it is in."""
    found = storage.absolute(folder)
    return found if storage.is_local(found) else f"{scheme_of(found)}://{split(found)[0]}"


def _plain_key(uri: str) -> str:
    """An object's URI without "." and "..", which mean to a table what they mean in a file system."""
    bucket, key = split(uri)
    if {".", ".."} & set(key.split("/")):
        key = posixpath.normpath(f"/{bucket}/{key}")[1:]
        bucket, _, key = key.partition("/")
    return f"{scheme_of(uri)}://{bucket}/{key}"
