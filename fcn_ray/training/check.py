"""Look at a labelled data set before anybody trains on it: every image and every label, in Ray tasks.

Training would find what is broken too, but hours later and one row at a time; and it never tells what it only suffers
from: labels that are nothing but void, images that are there twice, or in the validation set as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn_ray import cluster, storage
from fcn_ray.config import CheckConfig
from fcn_ray.errors import DataError
from fcn_ray.images.codec import ImageError, decode_image, decode_label
from fcn_ray.labels import LabelSet
from fcn_ray.training import ingest, order

EXAMPLES = 5
"""Rows of each kind that are named."""

KINDS = {
    "group": "row groups that cannot be read: their images are not counted",
    "image": "images that cannot be decoded",
    "mask": "masks that cannot be decoded",
    "size": "masks whose size is not their image's",
    "id": "masks with ids that are no class",
    "void": "masks that are nothing but void: they teach nothing",
    "exif": "images that a camera has turned (EXIF): their masks must be upright, as these are",
    "duplicate": "images whose bytes are there already",
    "shared": "validation images whose bytes are in the training set too: they flatter the scores",
}
"""What may be found. Training refuses the first five."""

REFUSED = ("group", "image", "mask", "size", "id")

DIGEST_BYTES = 16
"""Of an image; two different ones that share them are not to be expected."""


@dataclass
class Findings:
    """What is in a part of a data set, or all of it."""

    n_images: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    """Label pixels by id."""
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    """Labels in which the id occurs."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images by (width, height)."""
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by kind of finding, see KINDS."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    digests: list[tuple[bytes, str]] = field(default_factory=list)
    """(digest of the encoded image, key of its row)."""

    def add(self, kind: str, text: str) -> None:
        """One more row of a kind."""
        self.counts[kind] += 1
        named = self.examples.setdefault(kind, [])
        if len(named) < EXAMPLES:
            named.append(text)

    def merge(self, other: Findings) -> None:
        """Add what is in another part."""
        self.n_images += other.n_images
        self.pixels += other.pixels
        self.images += other.images
        self.sizes += other.sizes
        self.digests += other.digests
        self.counts += other.counts
        for kind, texts in other.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + texts)[:EXAMPLES]


@dataclass(frozen=True, slots=True, eq=False)
class CheckReport:
    """What `check` found."""

    data: Findings
    val: Findings | None
    labels: LabelSet | None

    @property
    def trainable(self) -> bool:
        """Nothing was found that training would refuse, and the classes have names, and labels of two at least."""
        return self.labels is not None and not self._any_refused() and not self._one_class()

    def _one_class(self) -> bool:
        """All that is labelled is one class, or nothing is."""
        return self.labels is not None and sum(self.data.pixels[: len(self.labels)] > 0) < 2

    def _any_refused(self) -> bool:
        return any(part.counts[kind] for part in (self.data, self.val) if part for kind in REFUSED)

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield from self._part("training set", self.data)
        if self.val:
            yield ""
            yield from self._part("validation set", self.val)
        yield ""
        if self.trainable:
            yield "training can start"
        if self._any_refused():
            yield "training would refuse this: mend or remove the rows above"
        if self._one_class() and self.labels is not None:
            yield (
                f"training would refuse this: no label holds a second class. {self.labels.ignore_id} means to ignore a "
                "pixel: if it is a class in these masks, give it the class's id"
            )
        if self.labels is None:
            yield (
                "training would refuse this: the files do not name their classes. Give the names by id, here as "
                "--classes sky,road,... and to train as --set classes=[sky,road,...]"
            )

    def _part(self, name: str, part: Findings) -> Iterator[str]:
        yield f"{name}: {part.n_images} images, {_describe_sizes(part.sizes)}"
        yield from _class_table(part, self.labels)
        for kind, meaning in KINDS.items():
            if part.counts[kind]:
                yield f"{part.counts[kind]} {meaning}"
                yield from (f"    {text}" for text in part.examples[kind])
                if (more := part.counts[kind] - len(part.examples[kind])) > 0:
                    yield f"    and {more} more"


def check(config: CheckConfig, *, verbose: bool = False) -> CheckReport:
    """Decode every image and label of a training set, and of a validation set, and say what is in them.

    Raises DataError or SchemaError when a file is no table with these columns, or names other classes than the others.
    """
    columns = ingest.Columns(config.image_column, config.mask_column)
    sets = [(uri, ingest.open_collection(storage.absolute(uri), columns)) for uri in (config.data, config.val) if uri]
    labels = ingest.find_labels(config.classes, sets)
    cluster.connect(config.address, verbose=verbose)
    parts = [_check_all(collection.pieces, columns, labels, config.max_pixels) for _, collection in sets]
    seen: dict[bytes, str] = {}
    for part, kind in zip(parts, ("duplicate", "shared"), strict=False):
        _find_copies(part, kind, seen)
    return CheckReport(parts[0], parts[1] if config.val else None, labels)


def _check_all(
    pieces: tuple[order.Piece, ...], columns: ingest.Columns, labels: LabelSet | None, max_pixels: int
) -> Findings:
    total = Findings()
    with cluster.own_errors():
        for part in cluster.stream_tasks(check_piece, ((piece, columns, labels, max_pixels) for piece in pieces)):
            total.merge(part)
    return total


def check_piece(piece: order.Piece, columns: ingest.Columns, labels: LabelSet | None, max_pixels: int) -> Findings:
    """What is in one row group."""
    found = Findings()
    rows = np.stack([np.zeros(piece.n_rows), np.arange(piece.n_rows)], 1).astype(np.int32)
    try:
        table = ingest.read_rows(order.Read((piece,), rows), columns)
    except DataError as error:
        found.add("group", str(error))
        return found
    for row in table.to_pylist():
        found.n_images += 1
        if row[ingest.IMAGE] is not None:
            digest = hashlib.blake2b(row[ingest.IMAGE], digest_size=DIGEST_BYTES).digest()
            found.digests.append((digest, row[ingest.KEY]))
        _check_row(found, row, labels, max_pixels)
    return found


def _check_row(found: Findings, row: dict[str, Any], labels: LabelSet | None, max_pixels: int) -> None:
    key = row[ingest.KEY]
    size = None
    try:
        image = decode_image(row[ingest.IMAGE], max_pixels)
        size = (image.pixels.shape[1], image.pixels.shape[0])
        found.sizes[size] += 1
        if "exif_rotated" in image.flags:
            found.add("exif", key)
    except ImageError as error:
        found.add("image", f"{key}: {error.status}: {error}")
    try:
        label = decode_label(row[ingest.LABEL], key)
    except Exception as error:  # whatever a broken mask does to its decoder, the others are looked at
        found.add("mask", str(error) if key in str(error) else f"{key}: {error}")
        return
    if size and label.shape != size[::-1]:
        found.add("size", f"{key}: image {size[0]}x{size[1]}, mask {label.shape[1]}x{label.shape[0]}")
    counts = np.bincount(label.ravel(), minlength=256)
    found.pixels += counts
    found.images += counts > 0
    ignore = labels.ignore_id if labels else 255
    if counts[ignore] == label.size:
        found.add("void", key)
    wrong = [int(i) for i in np.flatnonzero(counts) if labels and i >= len(labels) and i != ignore]
    if wrong:
        found.add("id", f"{key}: {', '.join(map(str, wrong))}")


def _find_copies(part: Findings, kind: str, seen: dict[bytes, str]) -> None:
    """Name the rows whose image is in `seen`, or came before in this part; the first of each joins `seen`."""
    here: dict[bytes, str] = {}
    for digest, key in part.digests:
        if digest in seen:
            part.add(kind, f"{key} is {seen[digest]}")
        elif digest in here:
            part.add("duplicate", f"{key} is {here[digest]}")
        else:
            here[digest] = key
    seen |= here
    part.digests.clear()


def _describe_sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none of them readable"
    (width, height), count = sizes.most_common(1)[0]
    rest = f"; {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    return f"{count} of {width}x{height}{rest}"


def _class_table(part: Findings, labels: LabelSet | None) -> Iterator[str]:
    """For each class its share of the labelled pixels and the images that hold it; void comes last."""
    ignore = labels.ignore_id if labels else 255
    ids = range(len(labels)) if labels else [int(i) for i in np.flatnonzero(part.pixels) if i != ignore]
    names = [labels.names[i] if labels else f"class {i}" for i in ids]
    width = max([len(name) for name in names] + [5])
    labelled = max(1, int(part.pixels.sum() - part.pixels[ignore]))
    yield f"{'class':<{width}}  {'pixels':>8}  {'images':>8}"
    for i, name in zip(ids, names, strict=True):
        absent = "  in no label" if not part.pixels[i] else ""
        yield f"{name:<{width}}  {100 * part.pixels[i] / labelled:>6.2f} %  {part.images[i]:>8}{absent}"
    void = 100 * part.pixels[ignore] / max(1, int(part.pixels.sum()))
    yield f"{'void':<{width}}  {void:>6.2f} %  {part.images[ignore]:>8}  of all pixels"
