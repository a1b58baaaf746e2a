"""How data sets lie in their folders: which image belongs to which label, to which split, and what the labels mean.

A layout is a function from the folder's paths; FORMATS names them all. Nothing is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

from fcn_ray import storage
from fcn_ray.config import TrainConfig
from fcn_ray.datasets import class_lists
from fcn_ray.datasets.encodings import ReadLabel, Wrong, colour_table, id_table, read_colours, read_ids
from fcn_ray.errors import ConfigError, DataError
from fcn_ray.images.geometry import Pixels
from fcn_ray.labels import IGNORE_ID, Colour, LabelSet
from fcn_ray.tables.sources import IMAGE_SUFFIXES

MAX_PIXELS: int = TrainConfig.model_fields["max_pixels"].default
"""Larger images are not imported: training would refuse them."""


@dataclass(frozen=True, slots=True)
class Source:
    """The folder of a data set: its URI, the paths of all files below it, and class names that the user gave."""

    uri: str
    paths: tuple[str, ...]
    names: tuple[str, ...] | None = None

    def text(self, path: str) -> str:
        """Content of a text file below the folder."""
        return storage.read_bytes(storage.join(self.uri, path)).decode("utf-8", errors="replace")

    def class_names(self, path: str) -> tuple[str, ...] | None:
        """Class names by id: the user's, else those in the text file `path` below the folder, if it is there."""
        if self.names is not None or path not in self.paths:
            return self.names
        return class_lists.parse_names(self.text(path), storage.join(self.uri, path))


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set: its classes, how to read a label, and the paths of images and labels by name.

    `splits` are the names in each split, None where the layout has no splits. `twins` are files that have the name of
    another one (a.jpg and a.png); they are not in `images` and `masks`. `faults` are what could not be listed, and why.
    """

    labels: LabelSet
    read: ReadLabel
    images: Mapping[str, str]
    masks: Mapping[str, str]
    splits: Mapping[str, Sequence[str]] | None = None
    twins: tuple[str, ...] = field(default=())
    faults: tuple[storage.Skipped, ...] = field(default=())


_COLOURS = "label_colors.txt"

_SPLITS = {"train": r"train(ing)?(\d{4})?", "val": r"val(id(ation)?)?(\d{4})?", "test": r"test(ing)?(\d{4})?"}
"""Name of a split -> the names that folders give it."""


def open_layout(format: str, uri: str, names: Sequence[str] | None = None) -> Layout:
    """What the folder `uri` holds, read as `format`; `names` are class names by id.

    Raises ConfigError for an unknown format or an empty folder, DataError when no image has its label there.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    read, expected = FORMATS[format]
    left: list[storage.Skipped] = []
    paths = tuple(entry.path for entry in storage.list_files(uri, left.append))
    if not paths:
        raise ConfigError(f"{uri} holds no files; expected the folder of a data set: {expected}")
    layout = read(Source(uri, paths, tuple(names) if names else None))
    if layout.images.keys().isdisjoint(layout.masks):
        folders = sorted({path.split("/")[0] for path in paths if "/" in path})
        raise DataError(
            f"{uri}: no image has its label where the format {format} has them: {expected}; found "
            f"{len(layout.images)} images and {len(layout.masks)} labels there, and the folders {folders[:20]}"
        )
    return replace(layout, faults=tuple(skipped for skipped in left if skipped.fault))


def split_name(folder: str) -> str:
    """The usual name of the split in a folder: "training" and "train2017" are train; others keep theirs."""
    return next((split for split, pattern in _SPLITS.items() if re.fullmatch(pattern, folder.lower())), folder)


def _list_folders(source: Source) -> Layout:
    images, more = _find(source, r"images/(.+)")
    masks, twins = _find(source, r"(?:masks|labels)/(.+)")
    names = source.class_names("classes.txt")
    if names is None:
        raise ConfigError(f"{source.uri} has no classes.txt with a name on each line; write one, or give --classes")
    splits = _splits({**images, **masks})
    usual = splits if splits and splits.keys() <= _SPLITS.keys() else None
    return Layout(LabelSet.from_names(names), _plain(len(names)), images, masks, usual, more + twins)


def _list_voc(source: Source) -> Layout:
    images, more = _find(source, r"JPEGImages/(.+)")
    masks, twins = _find(source, r"SegmentationClass/(.+)")
    lists = [path for path in source.paths if re.fullmatch(r"ImageSets/Segmentation/[^/]+\.txt", path)]
    lines = {PurePosixPath(path).stem: source.text(path).splitlines() for path in lists}
    splits = {split: list(dict.fromkeys(filter(None, map(str.strip, names)))) for split, names in lines.items()}
    if {"train", "val"} <= splits.keys():
        splits.pop("trainval", None)  # the two together
    names = source.names or class_lists.VOC
    labels = LabelSet(names, class_lists.voc_palette(len(names)))
    return Layout(labels, _plain(len(names)), images, masks, splits or None, more + twins)


def _list_camvid(source: Source) -> Layout:
    """Colours anywhere, found by their _L; or SegNet's folders of ids (trainannot), or of colours (train_labels)."""
    folders = {match[1] for path in source.paths if (match := re.match(r"\w+?(annot|_labels)/", path))}
    if folders:
        images, more = _find(source, r"((?!\w+?(?:annot|_labels)/)\w+/.+)")
        masks, twins = _find(source, r"(\w+?)(?:annot|_labels)(/.+?)(?:_L)?")
    else:
        images, more = _find(source, r"(?:.*/)?([^/]+)(?<!_L)")
        masks, twins = _find(source, r"(?:.*/)?([^/]+)_L")
    labels, meaning = _camvid_colours(source)
    read: ReadLabel = partial(read_colours, table=colour_table(meaning), max_pixels=MAX_PIXELS)
    if folders == {"annot"} and _COLOURS not in source.paths:
        read = partial(read_ids, table=id_table({**_identity(len(labels)), class_lists.CAMVID_VOID: IGNORE_ID}))
    splits = _splits({**images, **masks}) if folders else None
    return Layout(_renamed(labels, source), read, images, masks, splits, more + twins)


def _camvid_colours(source: Source) -> tuple[LabelSet, dict[Colour, int]]:
    """The classes and the id of each colour: the data set's own list, or the usual eleven."""
    if _COLOURS in source.paths:
        return class_lists.parse_colours(source.text(_COLOURS), storage.join(source.uri, _COLOURS))
    groups = [tuple(group.values()) for group in class_lists.CAMVID.values()]
    meaning = {colour: class_id for class_id, group in enumerate(groups) for colour in group}
    labels = LabelSet(tuple(class_lists.CAMVID), tuple(group[0] for group in groups))
    return labels, meaning | {(0, 0, 0): IGNORE_ID}


def _list_cityscapes(source: Source) -> Layout:
    images, more = _find(source, r"leftImg8bit/(.+)_leftImg8bit")
    by_id, twins = _find(source, r"gtFine/(.+)_gtFine_labelIds")
    by_train_id, others = _find(source, r"gtFine/(.+)_gtFine_labelTrainIds")
    classes = class_lists.CITYSCAPES
    labels = LabelSet(tuple(classes), tuple(colour for _, colour in classes.values()))
    known = {place: class_id for class_id, (place, _) in enumerate(classes.values())}
    ids = id_table(dict.fromkeys(range(class_lists.CITYSCAPES_IDS), IGNORE_ID) | known)
    train_ids = id_table(_identity(len(classes)))

    def read(data: bytes, path: str) -> tuple[Pixels, Wrong]:
        return read_ids(data, path, table=train_ids if "_labelTrainIds" in path else ids)

    masks = by_id | by_train_id
    return Layout(_renamed(labels, source), read, images, masks, _splits({**images, **masks}), more + twins + others)


def _list_ade20k(source: Source) -> Layout:
    images, more = _find(source, r"images/(.+)")
    masks, twins = _find(source, r"annotations/(.+)")
    names = source.class_names("objectInfo150.txt") or class_lists.number_classes(class_lists.ADE20K_CLASSES)
    shifted = {0: IGNORE_ID} | {class_id + 1: class_id for class_id in range(len(names))}
    read = partial(read_ids, table=id_table(shifted))
    return Layout(LabelSet.from_names(names), read, images, masks, _splits({**images, **masks}), more + twins)


def _list_coco_stuff(source: Source) -> Layout:
    images, more = _find(source, r"images/(.+)")
    masks, twins = _find(source, r"(?:annotations|stuffthingmaps)/(.+)_labelTrainIds")
    gaps = class_lists.COCO_GAPS if masks else frozenset()
    if not masks:
        masks, twins = _find(source, r"(?:annotations|stuffthingmaps)/(.+)")
    names = source.class_names("labels.txt") or class_lists.number_classes(class_lists.COCO_IDS - len(gaps))
    if len(names) == class_lists.COCO_IDS:
        names = tuple(name for class_id, name in enumerate(names) if class_id not in gaps)
    splits = _splits({**images, **masks})
    return Layout(LabelSet.from_names(names), _plain(len(names)), images, masks, splits, more + twins)


FORMATS: dict[str, tuple[Callable[[Source], Layout], str]] = {
    "folders": (_list_folders, "images/NAME.* and masks/NAME.png of class ids, classes.txt"),
    "voc": (_list_voc, "JPEGImages/NAME.jpg, SegmentationClass/NAME.png, ImageSets/Segmentation/SPLIT.txt"),
    "camvid": (
        _list_camvid,
        "NAME.png and NAME_L.png of colours, in any folders; or SPLIT/NAME.png, SPLITannot/NAME.png",
    ),
    "cityscapes": (
        _list_cityscapes,
        "leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png, gtFine/SPLIT/CITY/NAME_gtFine_labelTrainIds.png or _labelIds.png",
    ),
    "ade20k": (_list_ade20k, "images/training/NAME.jpg, annotations/training/NAME.png, objectInfo150.txt"),
    "coco_stuff": (
        _list_coco_stuff,
        "images/train2017/NAME.jpg, annotations (or stuffthingmaps)/train2017/NAME.png, labels.txt",
    ),
}
"""Format -> (what lists it, where it has its files)."""


def _find(source: Source, pattern: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Image files whose path without suffix fits `pattern`: {groups of the match: path}; the paths of twins."""
    found: dict[str, str] = {}
    twins = []
    for path in source.paths:
        stem = path.removesuffix(PurePosixPath(path).suffix)
        match = re.fullmatch(pattern, stem) if stem != path and path[len(stem) :].lower() in IMAGE_SUFFIXES else None
        if match and found.setdefault("".join(match.groups()), path) != path:
            twins.append(path)
    return found, tuple(twins)


def _splits(names: Iterable[str]) -> dict[str, list[str]] | None:
    """Names by the split that their first folder is; None when one lies in no folder."""
    splits: dict[str, list[str]] = {}
    for name in names:
        folder, slash, _ = name.partition("/")
        if not slash:
            return None
        splits.setdefault(split_name(folder), []).append(name)
    return splits


def _renamed(labels: LabelSet, source: Source) -> LabelSet:
    """The classes under the names that the user gave."""
    if source.names is None:
        return labels
    if len(source.names) != len(labels):
        raise ConfigError(f"{source.uri} has {len(labels)} classes, found {len(source.names)} names: give one for each")
    return LabelSet(source.names, labels.palette)


def _identity(count: int) -> dict[int, int]:
    return {class_id: class_id for class_id in range(count)}


def _plain(count: int) -> ReadLabel:
    """Labels whose ids are the class ids."""
    return partial(read_ids, table=id_table(_identity(count)))
