"""Patterns of paths: `*`, `?` and `[...]` stand for characters of one part of a path, the part `**` for any parts.

Letter case counts. A character that has a meaning stands for itself in brackets: `[*]`, `[?]`, `[[]`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

from fcn_ray.errors import ConfigError
from fcn_ray.storage import is_local

_MAGIC = re.compile(r"[*?\[]")
_ANY_PARTS = None

Pattern = Sequence[Callable[[str], object] | None]
"""For each part of the path whether a name fits; None, which is `**`, fits any number of names."""


def has_pattern(uri: str) -> bool:
    """True when `uri` holds a character that has a meaning in patterns."""
    return _MAGIC.search(uri) is not None


def split_pattern(uri: str) -> tuple[str, str]:
    """The longest folder without a pattern, and the pattern below it. Raises ConfigError when that is no place."""
    scheme, slashes, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    local = is_local(uri)
    parts = rest.rstrip("/").split("/")
    root = "/" if local and rest.startswith("/") else ""
    if local:
        parts = [part for part in parts if part not in ("", ".")]
    first = next(index for index, part in enumerate(parts) if has_pattern(part))
    if not local and first == 0:
        raise ConfigError(f"{uri}: the name of the bucket cannot be a pattern")
    if ".." in parts[first:]:
        raise ConfigError(f"{uri}: '..' cannot come after a part with * ? or [")
    while first > 1 and not parts[first - 1]:  # the empty parts of a key like a//b
        first -= 1
    folder = root + "/".join(parts[:first]) or "."
    return scheme + slashes + folder, "/".join(parts[first:])


def parse_pattern(text: str) -> Pattern:
    """A pattern of relative paths; `**` is one as a whole part only, and at the end stands for all files below."""
    parts = text.split("/")
    parts += ["*"] if parts[-1] == "**" else []
    return [_ANY_PARTS if part == "**" else re.compile(fnmatch.translate(part)).match for part in parts]


def fits(pattern: Pattern, path: str) -> bool:
    """True when the whole path is as the pattern says."""
    return len(pattern) in _reached(pattern, path)


def fits_below(pattern: Pattern, folder: str) -> bool:
    """True when there can be a path below `folder` that is as the pattern says."""
    return any(place < len(pattern) for place in _reached(pattern, folder))


def _reached(pattern: Pattern, path: str) -> set[int]:
    """How many parts of the pattern can be done with after the parts of the path."""
    places = _skip(pattern, {0})
    for name in path.split("/"):
        after = set()
        for place in places:
            fit = pattern[place] if place < len(pattern) else _nothing
            if fit is _ANY_PARTS:
                after.add(place)
            elif fit(name):
                after.add(place + 1)
        places = _skip(pattern, after)
    return places


def _skip(pattern: Pattern, places: set[int]) -> set[int]:
    """`places`, and those behind each `**` there, which may be none."""
    reached = set(places)
    for place in sorted(places):
        while place < len(pattern) and pattern[place] is _ANY_PARTS:
            place += 1
            reached.add(place)
    return reached


def _nothing(name: str) -> bool:
    return False
