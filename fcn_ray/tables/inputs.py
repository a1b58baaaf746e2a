"""What an input is called: a file, a folder, a pattern of files (`photos/**/*.jpg`) or a list of them (`@list.txt`).

A file or folder of exactly that name comes before a pattern. Paths of rows are relative to the folder, to the longest
folder without a pattern, or as the list has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fcn_ray import storage
from fcn_ray.errors import ConfigError
from fcn_ray.tables.patterns import fits, fits_below, has_pattern, parse_pattern, split_pattern

LIST_MARK = "@"
"""What the input begins with when it is a list."""

_QUERY = re.compile(r"\?[^/]*=")


@dataclass(frozen=True, slots=True)
class Input:
    """An input understood: where it lies (`uri`: the file, the folder, the folder of the pattern, the list itself),
    and the pattern, if it is one."""

    kind: Literal["file", "folder", "pattern", "list"]
    uri: str
    pattern: str = ""


def understand_input(uri: str) -> Input:
    """What `uri` means. It need not exist. That takes requests to a store: a job asks once, and tells its workers."""
    if uri.startswith(LIST_MARK):
        return Input("list", uri.removeprefix(LIST_MARK))
    if storage.is_file(uri):
        return Input("file", uri)
    if has_pattern(uri) and not storage.exists(uri):
        return Input("pattern", *split_pattern(uri))
    return Input("folder", uri)


def absolute_input(uri: str) -> str:
    """The one spelling of an input that means the same from every process. Raises ConfigError for what is no place."""
    if uri.startswith(LIST_MARK):
        return LIST_MARK + storage.absolute(uri.removeprefix(LIST_MARK))
    if not has_pattern(uri):
        return _absolute(uri)
    folder, pattern = split_pattern(uri)
    if storage.is_local(uri) and storage.exists(uri):
        return _absolute(uri)
    if not storage.is_local(uri) and _QUERY.search(pattern):
        raise ConfigError(f"{folder}/{pattern.partition('?')[0]}?...: give the plain URI, without a query")
    return storage.join(storage.absolute(folder), pattern)


def _absolute(uri: str) -> str:
    """A file keeps its own name, by which it is known, where that is a link: caches store files under their digests."""
    if storage.is_local(uri) and storage.is_file(uri):
        path = storage.local_path(uri)
        return storage.join(storage.absolute(str(path.parent)), path.name)
    return storage.absolute(uri)


def check_input(uri: str) -> None:
    """Raise ConfigError when there is nothing at `uri`: a missing folder would look like an empty one."""
    found = understand_input(uri)
    if found.kind == "pattern":
        matching = parse_pattern(found.pattern)
        if not any(fits(matching, entry.path) for entry in storage.list_files(found.uri, lambda left: None)):
            raise ConfigError(nothing_fits(found))
    elif found.kind == "list":
        if not storage.is_file(found.uri):
            raise ConfigError(
                f"input {uri}: there is no list {found.uri}; after @ comes a text file with a path or URI on each line"
            )
    elif not storage.exists(uri):
        raise ConfigError(f"input {uri} does not exist: check the path, and that this machine sees it")


def nothing_fits(found: Input) -> str:
    """What to say of a pattern without a file."""
    return (
        f"input {storage.join(found.uri, found.pattern)}: no file below {found.uri} fits the pattern {found.pattern} "
        "(** stands for any folders, * for what is in one name; a folder's files are FOLDER/**)"
    )


def locate_sources(where: Input) -> Callable[[str], str]:
    """The function that tells where the input with a path of rows is stored."""
    if where.kind == "file":
        return lambda path: where.uri
    if where.kind == "list":
        return partial(place_of, folder=folder_of(where.uri))
    return partial(storage.join, where.uri)


def reaches_into(uri: str, folder: str) -> bool:
    """True when what lies below `folder` would be input, or the input lies there (both absolute)."""
    found = understand_input(uri)
    if found.kind == "list":  # what it names is known to the user
        return _is_below(found.uri, folder)
    if found.kind == "pattern" and _is_below(folder, found.uri) and folder != found.uri:
        below = folder.removeprefix(found.uri.rstrip("/") + "/")
        return fits_below(parse_pattern(found.pattern), below)
    return _is_below(folder, found.uri) or _is_below(found.uri, folder)


def place_of(path: str, folder: str) -> str:
    """Where the file is that a table or a list names: URIs and absolute paths as they are, others from `folder`."""
    return path if "://" in path or path.startswith("/") else storage.join(folder, path)


def folder_of(uri: str) -> str:
    """The folder that a file lies in."""
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def _is_below(inner: str, outer: str) -> bool:
    """True when they are the same too."""
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")
