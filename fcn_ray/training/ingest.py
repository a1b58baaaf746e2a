"""Ray Data feeds the workers: Parquet rows -> shuffled -> decoded -> augmented, as uint8 batches of one size.

The order of an epoch is a pure function of (rows, seed, epoch), see order.py, and each image's augmentation of (seed,
epoch, image): the stream is the same whatever the number of tasks, and a run that was killed goes on with the batches
it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fcn_ray import storage
from fcn_ray.config import AugmentConfig
from fcn_ray.errors import DataError, SchemaError, StorageError, printable
from fcn_ray.images.augmentation import augment, sample_rng
from fcn_ray.images.codec import ImageError, decode_image, decode_label
from fcn_ray.labels import LabelSet
from fcn_ray.tables.pickles import open_parquet, read_footer
from fcn_ray.training.feeding import Feeder
from fcn_ray.training.order import Piece, Read

Batch = dict[str, np.ndarray]

IMAGE = "image"
LABEL = "label"
KEY = "key"


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the image and the mask column."""

    image: str
    mask: str


@dataclass(frozen=True, slots=True)
class Collection:
    """A labelled data set as its files' footers describe it."""

    pieces: tuple[Piece, ...]
    n_rows: int
    labels: LabelSet | None


def open_collection(uri: str, columns: Columns) -> Collection:
    """Read the footers of the Parquet file or folder `uri`. Raises DataError or SchemaError naming the file."""
    files = [(uri, storage.stat(uri).path)] if storage.is_file(uri) else _tables_below(uri)
    if not files:
        raise DataError(f"no Parquet file at {uri}: expected a .parquet file, or a folder with some")
    pieces: list[Piece] = []
    labels: LabelSet | None = None
    for path, key in files:
        try:
            with storage.open_file(path) as file:
                footer = read_footer(file)
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from error
        schema = footer.schema.to_arrow_schema()
        for column in (columns.image, columns.mask):
            if column not in schema.names:
                raise SchemaError(
                    f"{path} has no column {column!r}, only {schema.names}: set image_column or mask_column"
                )
        labels = agree(labels, LabelSet.from_metadata(schema.metadata), path)
        first = 0
        for group in range(footer.num_row_groups):
            rows, size = footer.row_group(group).num_rows, footer.row_group(group).total_byte_size
            pieces.append(Piece(path, key, group, first, rows, size))
            first += rows
    n_rows = sum(piece.n_rows for piece in pieces)
    if not n_rows:
        raise DataError(f"{uri} holds no rows")
    return Collection(tuple(pieces), n_rows, labels)


def _tables_below(folder: str) -> list[tuple[str, str]]:
    def refuse(left: storage.Skipped) -> None:
        if left.fault and left.path.lower().endswith(("/", ".parquet")):
            raise StorageError(f"{storage.join(folder, printable(left.path))} cannot be read: {left.why}")

    found = (entry.path for entry in storage.list_files(folder, refuse))
    return [(storage.join(folder, path), path) for path in found if path.lower().endswith(".parquet")]


def agree(known: LabelSet | None, found: LabelSet | None, where: str) -> LabelSet | None:
    """The one of two label sets that is there. Raises DataError when ids mean different classes in them."""
    if known and found and (known.names, known.ignore_id) != (found.names, found.ignore_id):
        raise DataError(
            f"{where} has the classes {list(found.names)}, the files before it {list(known.names)}: "
            "train on files that agree, or map the ids of one"
        )
    return known or found


def find_labels(classes: Sequence[str] | None, sets: Sequence[tuple[str, Collection]]) -> LabelSet | None:
    """What the ids in all `sets` (URI and files of each) mean: the given `classes`, or what files say; None without.

    Raises DataError when two sets mean different classes, or one another number of them than `classes` are.
    """
    if classes is None:
        labels = None
        for uri, collection in sets:
            labels = agree(labels, collection.labels, uri)
        return labels
    for uri, collection in sets:  # other names are what `classes` is for, but another number is another meaning
        if (found := collection.labels) and len(found) != len(classes):
            raise DataError(
                f"{uri} has {len(found)} classes, {list(found.names)}, but `classes` are {len(classes)}, "
                f"{list(classes)}: give one name for each id, in their order"
            )
    return LabelSet.from_names(classes)


# ---------------------------------------------------------------------------------------------------------- stages


def read_rows(read: Read, columns: Columns) -> pa.Table:
    """Encoded rows of one reading task: columns image, label (bytes) and key ("<path>#<row>")."""
    tables = []
    for piece in read.pieces:
        table = read_group(piece, [columns.image, columns.mask])
        keys = [f"{piece.key}#{piece.first_row + row}" for row in range(piece.n_rows)]
        image, label = (encoded(table[name], piece, name) for name in (columns.image, columns.mask))
        tables.append(pa.table({IMAGE: image, LABEL: label, KEY: keys}))
    offsets = np.cumsum([0] + [piece.n_rows for piece in read.pieces])
    return pa.concat_tables(tables).take(offsets[read.rows[:, 0]] + read.rows[:, 1])


def read_group(piece: Piece, columns: list[str]) -> pa.Table:
    """These columns of a row group as they are stored; pages that have a checksum are held against it.

    Raises DataError that names the file and the row group when its bytes are damaged, StorageError when they cannot be
    had.
    """
    where = f"{piece.path}: row group {piece.row_group} cannot be read"
    with storage.open_file(piece.path) as file:
        try:
            return open_parquet(file, page_checksum_verification=True).read_row_group(piece.row_group, columns=columns)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's or the network's, not the decoder's
                raise StorageError(f"{where}: {error.strerror or error}") from error
            found = " ".join(str(error).split())[:300]
            raise DataError(f"{where}: {found}: the file is damaged, write it again or leave it out") from error


def encoded(column: pa.ChunkedArray, piece: Piece, name: str) -> pa.ChunkedArray:
    """The bytes of a binary, large_binary or HF image struct column."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise SchemaError(
            f"{piece.path}: column {name!r} is {column.type}, expected encoded images (binary or HF struct)"
        )
    return column.cast(pa.large_binary())


def decode_sample(row: dict[str, Any], labels: LabelSet, max_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and label (H, W), both uint8, of an encoded row. Raises DataError that names the row."""
    key = row[KEY]
    try:
        image = decode_image(row[IMAGE], max_pixels).pixels
        label = decode_label(row[LABEL], f"{key}: mask")
    except ImageError as error:
        raise DataError(f"{key}: training image is {error.status}: {error}") from error
    if image.shape[:2] != label.shape:
        raise DataError(
            f"{key}: image is {_size(image)} pixels, its mask {_size(label)}: they must be equal (resize with nearest)"
        )
    count_pixels(label, labels, key)
    return image, label


def count_pixels(label: np.ndarray, labels: LabelSet, key: str) -> np.ndarray:
    """Pixels (K,) of each class in a uint8 label (H, W). Raises DataError that names the row for any other id."""
    pixels = np.bincount(label.ravel(), minlength=256)
    wrong = [int(i) for i in np.flatnonzero(pixels) if i >= len(labels) and i != labels.ignore_id]
    if wrong:
        raise DataError(
            f"{key}: mask holds class ids {wrong}, expected 0..{len(labels) - 1} or {labels.ignore_id} (ignore): "
            "map them to classes or to the ignore id"
        )
    return pixels[: len(labels)]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


@dataclass(frozen=True, slots=True)
class Augmented:
    """Stage of training. Reads: image, label (bytes), key. Adds: image, label as (N, h, w[, 3]) uint8. Drops: key."""

    labels: LabelSet
    config: AugmentConfig
    max_pixels: int
    seed: int
    epoch: int

    def __call__(self, batch: Batch) -> Batch:
        """The stage."""
        images, labels = [], []
        for row in _rows(batch):
            image, label = decode_sample(row, self.labels, self.max_pixels)
            rng = sample_rng(self.seed, self.epoch, row[KEY])
            image, label = augment(image, label, self.config, rng, self.labels.ignore_id)
            images.append(image)
            labels.append(label)
        return {IMAGE: np.stack(images), LABEL: np.stack(labels)}


def _rows(batch: Batch) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


READS_AHEAD = 2
"""Windows of rows that a stream reads at once."""


def stream(
    reads: list[Read],
    columns: Columns,
    stage: Augmented | None,
    batch_size: int,
    feeder: Feeder,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Batches of `batch_size` rows in the order of `reads`: augmented by `stage`, or as they are stored without one."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # a DataError of ours must come out as one
    context.target_max_block_size = 16 * 2**20  # a worker gets its first batch long before a window is decoded
    if feeder.node:
        place = NodeAffinitySchedulingStrategy(feeder.node, soft=True)
        context.scheduling_strategy = context.scheduling_strategy_large_args = place
    tasks = ray.put(reads)
    with ray.data.DataContext.current(context):
        # from_items and not range, whose own tasks would want a CPU each
        dataset = ray.data.from_items(list(range(len(reads))), override_num_blocks=len(reads)).map_batches(
            _read_stage,
            fn_kwargs={"tasks": tasks, "columns": columns},
            batch_size=None,
            batch_format="numpy",
            num_cpus=0,
            # Not as many as decode: Ray Data would make one stage of two that have pools of one size.
            compute=ray.data.TaskPoolStrategy(size=READS_AHEAD + (feeder.tasks == READS_AHEAD)),
        )
        if stage is not None:
            pool = ray.data.TaskPoolStrategy(size=feeder.tasks)
            dataset = dataset.map_batches(stage, batch_size=batch_size, batch_format="numpy", num_cpus=0, compute=pool)
    yield from dataset.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=prefetch)


def _read_stage(batch: Batch, tasks: list[Read] | ray.ObjectRef, columns: Columns) -> Iterator[pa.Table]:
    reads: list[Read] = ray.get(tasks) if isinstance(tasks, ray.ObjectRef) else tasks
    for index in batch["item"]:
        yield read_rows(reads[int(index)], columns)
