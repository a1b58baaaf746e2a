"""Storage as pyarrow's own readers see it: the same requests, retries and credentials as everywhere else."""

from __future__ import annotations

from typing import Any, BinaryIO, NoReturn

import pyarrow as pa
from pyarrow import fs

from fcn_ray import storage
from fcn_ray.storage.uris import scheme_of


def open_filesystem(uri: str) -> fs.FileSystem:
    """The file system, to read from, that the place `uri` is in; its paths are those of `path_in`."""
    return fs.LocalFileSystem() if storage.is_local(uri) else fs.PyFileSystem(_ObjectStore(scheme_of(uri)))


def path_in(uri: str) -> str:
    """The path of a URI in its file system."""
    return storage.local_path(uri).as_posix() if storage.is_local(uri) else uri.partition("://")[2]


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise OSError("this file system is for reading")


class _ObjectStore(fs.FileSystemHandler):  # type: ignore[misc]
    """An object store whose paths are bucket/key."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ObjectStore) and other.scheme == self.scheme

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return f"fcn_ray+{self.scheme}"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._open(path), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._open(path), mode="r")

    def _open(self, path: str) -> BinaryIO:
        return storage.open_file(f"{self.scheme}://{path}")

    def _info(self, path: str) -> fs.FileInfo:
        uri = f"{self.scheme}://{path}"
        if storage.is_file(uri):
            return fs.FileInfo(path, fs.FileType.File, size=storage.stat(uri).size)
        return fs.FileInfo(path, fs.FileType.Directory if storage.exists(uri) else fs.FileType.NotFound)

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse
