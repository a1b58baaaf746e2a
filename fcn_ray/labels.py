"""LabelSet: what the ids in a label or a mask mean (names, colours, the id that counts as nothing)."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fcn_ray.errors import DataError

IGNORE_ID = 255
"""The id of pixels without a class (void): no loss, no score (fcn.md R11). 8-bit masks leave 255 ids for classes."""

METADATA_KEY = "fcn_ray.labels"
"""Parquet schema metadata key under which a label set travels with a table."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Class names in the order of their ids, one RGB colour (0..255) for each, and the id to ignore."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_id: int = IGNORE_ID

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= IGNORE_ID:
            raise DataError(f"a label set needs 2 to {IGNORE_ID} classes, found {len(self.names)}: {list(self.names)}")
        if len(set(self.names)) != len(self.names):
            raise DataError(f"class names must differ, found {list(self.names)}")
        if len(self.palette) != len(self.names):
            raise DataError(f"{len(self.names)} classes need as many colours, found {len(self.palette)}")
        if self.ignore_id < len(self.names):
            raise DataError(f"ignore id {self.ignore_id} is also the id of class {self.names[self.ignore_id]!r}")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> LabelSet:
        """Label set with distinct colours made for the names."""
        return cls(tuple(names), make_palette(len(names)))

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> LabelSet | None:
        """Label set of a Parquet schema, from our own key or from plain `classes` and `palette` keys; None without.

        Raises DataError for what is none.
        """
        try:
            return cls._from_metadata(metadata or {})
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise DataError(f"the classes in the Parquet metadata cannot be read: {str(error)[:200]}") from error

    @classmethod
    def _from_metadata(cls, metadata: Mapping[bytes, bytes]) -> LabelSet | None:
        if METADATA_KEY.encode() in metadata:
            return cls.from_json(metadata[METADATA_KEY.encode()].decode())
        if b"classes" not in metadata:
            return None
        names = tuple(str(name) for name in json.loads(metadata[b"classes"]))
        stored = json.loads(metadata.get(b"palette", b"[]"))
        palette = tuple((int(r), int(g), int(b)) for r, g, b in stored[: len(names)])
        return cls(names, palette if len(palette) == len(names) else make_palette(len(names)))

    @classmethod
    def from_json(cls, text: str) -> LabelSet:
        """Inverse of `to_json`."""
        data = json.loads(text)
        palette = tuple((int(r), int(g), int(b)) for r, g, b in data["palette"])
        return cls(tuple(data["names"]), palette, int(data["ignore_id"]))

    def to_json(self) -> str:
        """Canonical JSON: equal label sets give equal text."""
        data = {"names": self.names, "palette": self.palette, "ignore_id": self.ignore_id}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))


def make_palette(count: int) -> tuple[Colour, ...]:
    """`count` RGB colours that differ: hues by the golden ratio, so that neighbours in id are far apart in colour."""
    colours = []
    for index in range(count):
        hue, value = (index * 0.618034) % 1.0, 0.95 - 0.3 * (index % 3) / 2
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)
