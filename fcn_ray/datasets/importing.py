"""Import: a data set in one of the usual layouts -> Parquet files that `fcn-ray train` reads.

OUT/train/train-00000-of-00003.parquet, OUT/val/...: a folder for each split, as training takes one. A split gets its
name when it is whole. Images keep their bytes; labels become PNGs of class ids.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fcn_ray import storage
from fcn_ray.datasets.class_lists import parse_names
from fcn_ray.datasets.encodings import Wrong
from fcn_ray.datasets.import_report import ImportReport
from fcn_ray.datasets.layouts import MAX_PIXELS, Layout, open_layout
from fcn_ray.datasets.shards import SHARD_BYTES, Sample, write_shards
from fcn_ray.datasets.unfinished import work_folder
from fcn_ray.errors import ConfigError, DataError, ForeignOutputError, StorageError
from fcn_ray.images.codec import ImageError, decode_image, encode_mask
from fcn_ray.machine import count_cpus
from fcn_ray.reports.progress import Progress
from fcn_ray.tables.schema import labelled_schema

_MAX_THREADS = 16
"""Images that are decoded at the same time; each may be large."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Pair(NamedTuple):
    """An image and its label: their name, and their paths below the source."""

    name: str
    image: str
    mask: str


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a pair is not imported; `what` names the file."""

    reason: str
    what: str


@dataclass(frozen=True, slots=True)
class _Read:
    """What became of a pair: pixels of each id in its label, of ids that are no class, and whether EXIF turned it."""

    found: Sample | _Refusal
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    wrong: Wrong = field(default_factory=dict)
    turned: bool = False


def import_dataset(  # noqa: PLR0913  (each is a flag of the command)
    format: str,
    source: str,
    out: str,
    *,
    classes: str | Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    val_fraction: float = 0.0,
    strict: bool = False,
    shard_bytes: int | None = None,
) -> ImportReport:
    """Write the data set in the folder `source`, laid out as `format` (layouts.FORMATS), to `out`/SPLIT/*.parquet.

    `classes` are names by id, or text: names with commas, or a file. Of several splits only `splits` are taken. Where
    the layout has none, all is train, but for `val_fraction` of the images, chosen by the hash of their names.
    What is no class in a label is ignored, and counted; DataError instead when `strict`. Images and labels that cannot
    be used are counted and left out. Raises ConfigError and DataError for what cannot be imported, ForeignOutputError
    when a split is in `out` already, StorageError when `out` cannot be written.
    """
    shard_bytes = SHARD_BYTES if shard_bytes is None else shard_bytes
    if shard_bytes < 1 or not 0 <= val_fraction < 1:
        raise ConfigError(
            f"found {shard_bytes} bytes in a file and {val_fraction} of the images for validation; "
            "expected at least 1, and from 0 to below 1"
        )
    layout = open_layout(format, source, _read_classes(classes))
    chosen = choose_splits(layout, splits, val_fraction)
    folder = storage.local_path(out)
    for split in chosen:
        if (folder / split).exists():
            raise _taken(folder / split)
    report = ImportReport(format, out, layout.labels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with work_folder(folder) as work:
            _Import(layout, source, report, strict, shard_bytes).write(chosen, work)
            _put(work, folder, report)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}") from error
    return report


def _read_classes(classes: str | Sequence[str] | None) -> Sequence[str] | None:
    if not isinstance(classes, str):
        return classes
    if storage.is_file(classes):
        return parse_names(storage.read_bytes(classes).decode("utf-8", errors="replace"), classes)
    if "," not in classes:
        raise ConfigError(f"classes {classes!r}: expected a file with a name on each line, or names with commas")
    return [name.strip() for name in classes.split(",")]


def choose_splits(
    layout: Layout, wanted: Sequence[str] | None = None, val_fraction: float = 0.0
) -> dict[str, list[str]]:
    """Names of the images and labels of each split, in order. Raises ConfigError for splits that are not there."""
    if layout.splits is not None and val_fraction:
        raise ConfigError(f"the data set has the splits {', '.join(layout.splits)} of its own: leave out val_fraction")
    found: Mapping[str, Sequence[str]] = layout.splits or _split_by_hash(
        layout.images.keys() | layout.masks.keys(), val_fraction
    )
    if missing := [split for split in wanted or () if split not in found]:
        raise ConfigError(f"the data set has no split {', '.join(missing)}, only {', '.join(found)}")
    return {split: sorted(names) for split, names in sorted(found.items()) if wanted is None or split in wanted}


def _split_by_hash(names: Iterable[str], val_fraction: float) -> dict[str, list[str]]:
    """train and val. A name stays where it is when others are added, and a larger val holds the smaller one."""
    splits: dict[str, list[str]] = {"train": []}
    for name in names:
        share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
        splits.setdefault("val" if share < val_fraction else "train", []).append(name)
    return splits


@dataclass(frozen=True, slots=True)
class _Import:
    """One import on its way."""

    layout: Layout
    source: str
    report: ImportReport
    strict: bool
    shard_bytes: int

    def write(self, chosen: Mapping[str, Sequence[str]], work: Path) -> None:
        """Write the splits below `work`. Raises DataError when nothing is left to write."""
        for path in self.layout.twins:
            self.report.refuse("second file of a name", path)
        for fault in self.layout.faults:
            self.report.refuse("file that cannot be read", f"{fault.path}: {fault.why}")
        pairs = {split: list(self._pairs(names)) for split, names in chosen.items()}
        arrow = labelled_schema(self.layout.labels)
        with Progress(sum(map(len, pairs.values()))) as progress:
            counter = count(1)
            for split, found in pairs.items():
                samples = self._samples(split, found, lambda: progress.update(next(counter), self.report.n_refused))
                self.report.shards[split] = write_shards(work / split, split, samples, arrow, self.shard_bytes)
        if not self.report.images:
            raise DataError("\n".join([f"{self.source}: no image could be imported", *list(self.report.lines())[1:]]))

    def _pairs(self, names: Iterable[str]) -> Iterator[_Pair]:
        for name in names:
            image, mask = self.layout.images.get(name), self.layout.masks.get(name)
            if image and mask:
                yield _Pair(name, image, mask)
            elif image:
                self.report.refuse("image without a label", image)
            elif mask:
                self.report.refuse("label without an image", mask)
            else:
                self.report.refuse("listed, but neither image nor label", name)

    def _samples(self, split: str, pairs: Sequence[_Pair], on_done: Callable[[], None]) -> Iterator[Sample]:
        """The pairs that can be imported, in order; the others, and wrong values, are noted."""
        for pair, read in zip(pairs, map_in_threads(self._read, pairs), strict=True):
            if isinstance(read.found, _Refusal):
                self.report.refuse(read.found.reason, read.found.what)
            else:
                self._check(pair, read.wrong)
                self.report.note_wrong(read.wrong, pair.mask)
                self.report.pixels += read.pixels
                self.report.turned += read.turned
                self.report.images[split] = self.report.images.get(split, 0) + 1
                yield read.found
            on_done()

    def _check(self, pair: _Pair, wrong: Wrong) -> None:
        if wrong and self.strict:
            name, pixels = max(wrong.items(), key=lambda item: item[1])
            raise DataError(
                f"{storage.join(self.source, pair.mask)}: {pixels} pixels are {name}, which is no class "
                f"({len(wrong)} such values in this label): mend the label or the list of classes, or import without "
                "--strict to ignore them"
            )

    def _read(self, pair: _Pair) -> _Read:
        """Read and check one pair."""
        try:
            data, label = (storage.read_bytes(storage.join(self.source, path)) for path in (pair.image, pair.mask))
            image = decode_image(data, MAX_PIXELS)
            ids, wrong = self.layout.read(label, pair.mask)
        except StorageError as error:
            return _Read(_Refusal("file that cannot be read", str(error)))
        except ImageError as error:
            return _Read(_Refusal(f"image that is {error.status}", f"{pair.image} ({error})"))
        except DataError as error:
            return _Read(_Refusal("label that cannot be used", str(error)))
        height, width = image.pixels.shape[:2]
        turned = "exif_rotated" in image.flags
        if ids.shape != (height, width):
            how = ", turned upright by its EXIF orientation," if turned else ""
            sizes = f"{pair.mask} is {ids.shape[1]}x{ids.shape[0]}, its image{how} {width}x{height}"
            return _Read(_Refusal("label of another size than its image", sizes))
        pixels = np.bincount(ids.ravel(), minlength=256)
        return _Read(Sample(pair.name, pair.image, data, encode_mask(ids)), pixels, wrong, turned)


def map_in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in the order of the items, at most twice as many under way as there are threads.

    Pillow and zlib let other threads run while they decode.
    """
    threads = min(_MAX_THREADS, count_cpus())
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _put(work: Path, folder: Path, report: ImportReport) -> None:
    """Give the whole splits their names, unless someone else took one meanwhile."""
    for split in report.images:
        try:
            os.rename(work / split, folder / split)  # replaces nothing but an empty folder
        except OSError:
            if (folder / split).exists():
                raise _taken(folder / split) from None
            raise


def _taken(folder: Path) -> ForeignOutputError:
    return ForeignOutputError(f"{folder} is there already, and an import overwrites nothing: choose another folder")
