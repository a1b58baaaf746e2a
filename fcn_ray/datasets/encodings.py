"""Encoded labels of other data sets -> class ids of ours. Labels hold ids or colours.

What is neither a class nor void becomes the ignore id, and is counted: a wrong palette, or a blurred label, must not
train a network in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fcn_ray.errors import DataError
from fcn_ray.images.codec import LABEL_FORMATS, ImageError, decode_image, decode_label
from fcn_ray.images.formats import ACCEPTED, sniff
from fcn_ray.images.geometry import Pixels
from fcn_ray.labels import IGNORE_ID, Colour

Wrong = dict[str, int]
"""What in a label is no class ("id 17", "colour 1,2,3") -> its pixels."""

ReadLabel = Callable[[bytes, str], tuple[Pixels, Wrong]]
"""(encoded label, its path) -> class ids (H, W) uint8, and what was wrong. Raises DataError that names the path."""

IdTable = npt.NDArray[np.int16]
"""(256,): id in a label -> class id, ignore id, or 256 for what is neither."""

_NEITHER = 256


@dataclass(frozen=True, slots=True, eq=False)
class ColourTable:
    """The class ids of some colours: `codes` (N,) int32 of the colours in ascending order, `ids` (N,) uint8."""

    codes: npt.NDArray[np.int32]
    ids: Pixels


def id_table(meaning: Mapping[int, int]) -> IdTable:
    """Table of {id in a label: class id or ignore id}; the ignore id always means itself."""
    table = np.full(256, _NEITHER, np.int16)
    table[IGNORE_ID] = IGNORE_ID
    table[list(meaning)] = list(meaning.values())
    return table


def colour_table(meaning: Mapping[Colour, int]) -> ColourTable:
    """Table of {colour in a label: class id or ignore id}."""
    coded = sorted((red << 16 | green << 8 | blue, class_id) for (red, green, blue), class_id in meaning.items())
    codes, ids = zip(*coded, strict=True)
    return ColourTable(np.array(codes, np.int32), np.array(ids, np.uint8))


def map_ids(label: Pixels, table: IdTable) -> tuple[Pixels, Wrong]:
    """Ids (H, W) uint8 of another data set -> class ids (H, W) uint8, and the pixels of ids that mean nothing."""
    ids = table[label]
    neither = ids == _NEITHER
    wrong: Wrong = {}
    if neither.any():
        pixels = np.bincount(label[neither], minlength=256)
        wrong = {f"id {index}": int(pixels[index]) for index in np.flatnonzero(pixels)}
        ids[neither] = IGNORE_ID
    return ids.astype(np.uint8), wrong


def map_colours(label: Pixels, table: ColourTable) -> tuple[Pixels, Wrong]:
    """Colours (H, W, 3) uint8 -> class ids (H, W) uint8, and the pixels of colours that mean nothing."""
    channels = label.astype(np.int32)
    codes = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    places = np.searchsorted(table.codes, codes)
    np.minimum(places, len(table.codes) - 1, out=places)
    ids, neither = table.ids[places], table.codes[places] != codes
    wrong: Wrong = {}
    if neither.any():
        found, pixels = np.unique(codes[neither], return_counts=True)
        wrong = {_colour_name(int(code)): int(count) for code, count in zip(found, pixels, strict=True)}
        ids[neither] = IGNORE_ID
    return ids, wrong


def read_ids(data: bytes, path: str, *, table: IdTable) -> tuple[Pixels, Wrong]:
    """The class ids of an encoded label of ids; of a palette image the indices, never the colours."""
    return map_ids(decode_label(data, path), table)


def read_colours(data: bytes, path: str, *, table: ColourTable, max_pixels: int) -> tuple[Pixels, Wrong]:
    """The class ids of an encoded label of colours."""
    kind = sniff(data)
    if kind in ACCEPTED and kind not in LABEL_FORMATS:
        raise DataError(f"{path}: {kind} is lossy and blends colours; labels must be PNG, TIFF, BMP or GIF")
    try:
        return map_colours(decode_image(data, max_pixels).pixels, table)
    except ImageError as error:
        raise DataError(f"{path}: label is {error.status}: {error}") from error


def _colour_name(code: int) -> str:
    return f"colour {code >> 16},{code >> 8 & 255},{code & 255}"
