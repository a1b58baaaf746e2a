"""Labels in order, and the mask that belongs to each: what an evaluation reads.

Both are found by key, relative to their root: `<path>#<row>` for a row of a table, the path without image suffixes for
a file. So labels that are laid out as the images were meet the masks of those images: below the folder of a pattern, or
as a list names them. Those of a tar's images are not found, nor labels in tars. Memory holds the keys of all masks and
a few row groups, never more.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.errors import ConfigError, DataError, SchemaError
from fcn_ray.labels import LabelSet
from fcn_ray.tables import schema
from fcn_ray.tables.pickles import open_parquet
from fcn_ray.tables.plan import is_done, list_done
from fcn_ray.tables.planfile import newest_plan
from fcn_ray.tables.runs import find_run
from fcn_ray.tables.sources import IMAGE_SUFFIXES, TABLE_SUFFIX, TAR_SUFFIX
from fcn_ray.tables.superseded import find_superseded

_BATCH_ROWS = 64
"""Labels that are read at a time."""

_CACHED_GROUPS = 4
"""Row groups of masks that are kept: the rows of a chunk are asked for one after the other."""


class StoredLabel(NamedTuple):
    """One encoded label: its key, where it is (for messages), its bytes."""

    key: str
    where: str
    data: bytes


def stream_labels(uri: str, column: str) -> Iterator[StoredLabel]:
    """Labels of a Parquet file, or of a folder of Parquet and id image files, by path. Null cells are no labels."""
    for path, file in _files(uri):
        if path.lower().endswith(TABLE_SUFFIX):
            yield from _table_labels(path, file, column)
        elif path != _stem(path):
            yield StoredLabel(_stem(path), file, storage.read_bytes(file))


def stored_label_set(uri: str) -> LabelSet | None:
    """The label set in the metadata of the Parquet files at `uri`; None without.

    Raises DataError when two files mean different classes by the same ids.
    """
    first, known = "", None
    for file, labels in _label_sets(uri):
        if known and (known.names, known.ignore_id) != (labels.names, labels.ignore_id):
            raise DataError(
                f"{file} has the classes {list(labels.names)} without {labels.ignore_id}, {first} has "
                f"{list(known.names)} without {known.ignore_id}: evaluate them one by one, or map the ids of one"
            )
        if not known:
            first, known = file, labels
    return known


def _label_sets(uri: str) -> Iterator[tuple[str, LabelSet]]:
    """Each Parquet file that names its classes, and what it says."""
    for path, file in _files(uri):
        if path.lower().endswith(TABLE_SUFFIX):
            with _open_table(file) as table:
                if labels := LabelSet.from_metadata(table.schema_arrow.metadata):
                    yield file, labels


def _table_labels(path: str, uri: str, column: str) -> Iterator[StoredLabel]:
    row = 0
    with _open_table(uri) as table:
        if column not in table.schema_arrow.names:
            raise SchemaError(f"{uri} has no column {column!r}, found {table.schema_arrow.names}; name the right one")
        for batch in table.iter_batches(_BATCH_ROWS, columns=[column]):
            for data in _encoded(batch.column(0), f"{uri}: column {column!r}"):
                if data is not None:
                    yield StoredLabel(f"{path}#{row}", f"{uri} row {row}", data)
                row += 1


class _Place(NamedTuple):
    """Where a mask is: row `row` of row group `group` of `file`, or the whole file (group -1). `path` is its image."""

    file: str
    group: int
    row: int
    path: str
    plan: int
    status: str


_WHOLE_FILE = -1

ReadGroup = Callable[[str, int], list[bytes | None]]


@dataclass(slots=True)
class MaskIndex:
    """Where the mask of each key is; `labels` is the meaning of its ids, when that is stored beside the masks."""

    uri: str
    labels: LabelSet | None = None
    _places: dict[str, _Place] = field(default_factory=dict)
    _twins: dict[str, str] = field(default_factory=dict)
    """Key -> path of a second image with that key (a.jpg and a.png)."""
    _read_group: ReadGroup = field(default_factory=lambda: lru_cache(_CACHED_GROUPS)(_read_masks))

    @classmethod
    def open(cls, uri: str) -> MaskIndex:
        """Current masks of the output of segment, of one run in it (as `read_masks` gives them), or a folder of id
        images.

        Raises ConfigError when there are none, or several runs to choose from.
        """
        run = _find_run(uri)
        index = cls(uri)
        if run is not None:
            index._add_run(run)
        else:
            for path, file in _files(uri):
                if path != _stem(path):
                    index._add(_stem(path), _Place(file, _WHOLE_FILE, 0, path, 0, schema.OK))
        if not index._places:
            raise ConfigError(f"{uri} holds no masks; expected the output folder of segment, or a folder of id PNGs")
        return index

    def take(self, label: StoredLabel) -> bytes | None:
        """The encoded mask for a label, which then counts as taken; None where the image's row says that it has none.

        Raises DataError when there is no such image.
        """
        place = self._places.pop(label.key, None)
        if place is None:
            there = f" (it has one for {next(iter(self._places))!r})" if self._places else ""
            raise DataError(
                f"{label.where}: {self.uri} has no mask for {label.key!r}{there}; "
                "segment the images of these labels, in the same folders and files, or give the labels of those images"
            )
        if label.key in self._twins:
            raise DataError(f"{label.where}: {place.path} and {self._twins[label.key]} share this label; rename one")
        if place.status != schema.OK:
            return None
        if place.group == _WHOLE_FILE:
            return storage.read_bytes(place.file)
        data = self._read_group(place.file, place.group)[place.row]
        if data is None:
            raise DataError(f"{place.file}: the mask of {label.key!r} is missing though its row is ok; run the audit")
        return data

    def count_left(self) -> int:
        """Masks that were not taken."""
        return sum(place.status == schema.OK for place in self._places.values())

    def _add_run(self, run: str) -> None:
        masks = storage.join(run, "masks")
        # All files of a run have its label set, and they may be a million: the first that there is says it.
        self.labels = next((labels for _, labels in _label_sets(masks)), None)
        superseded = find_superseded(run, newest_plan(run), partial(is_done, list_done(run)))
        for path, file in _files(masks):
            name = path.removesuffix(TABLE_SUFFIX)
            if path.lower().endswith(TABLE_SUFFIX) and not superseded.has_all(name):
                places = superseded.parts.get(name, ())
                self._add_table(file, {(place.path, row) for place in places for row in place.rows})

    def _add_table(self, uri: str, superseded: Container[tuple[str, int]]) -> None:
        columns = [schema.PATH, schema.ROW, schema.PLAN, schema.STATUS]
        with _open_table(uri) as table:
            for group in range(table.num_row_groups):
                for row, cells in enumerate(table.read_row_group(group, columns).select(columns).to_pylist()):
                    path, number, plan, status = cells.values()
                    if (path, number) in superseded:
                        continue
                    key = f"{path}#{number}" if path.lower().endswith((TABLE_SUFFIX, TAR_SUFFIX)) else _stem(path)
                    self._add(key, _Place(uri, group, row, path, plan, status))

    def _add(self, key: str, place: _Place) -> None:
        known = self._places.get(key)
        if known is not None and known.path != place.path:
            self._twins[key] = place.path
        elif known is None or known.plan < place.plan:  # as in masks that were copied without their plans
            self._places[key] = place


def _find_run(uri: str) -> str | None:
    """The only run in `uri` that has masks, or the run `uri`; None when that is another kind of folder."""
    run = find_run(uri)
    files = _files(storage.join(run, "masks"))
    return run if any(path.lower().endswith(TABLE_SUFFIX) for path, _ in files) else None


def _read_masks(uri: str, group: int) -> list[bytes | None]:
    with _open_table(uri) as table:
        return _encoded(table.read_row_group(group, [schema.MASK])[schema.MASK], uri)


def _encoded(column: pa.Array | pa.ChunkedArray, where: str) -> list[bytes | None]:
    """Bytes of a binary or image struct column."""
    if schema.is_image_struct(column.type):
        column = pc.struct_field(column, "bytes")
    if not schema.is_binary(column.type):
        raise SchemaError(f"{where} has type {column.type}; expected encoded masks, binary or struct<bytes, path>")
    cells: list[bytes | None] = column.to_pylist()
    return cells


@contextmanager
def _open_table(uri: str) -> Iterator[pq.ParquetFile]:
    with storage.open_file(uri) as file:
        try:
            yield open_parquet(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{uri} cannot be read as Parquet: {error}") from error


def _files(uri: str) -> Iterator[tuple[str, str]]:
    """(path below `uri`, URI) of every file of a folder, or of the one file, whose path is its name."""
    if storage.is_file(uri):
        yield storage.stat(uri).path, uri
        return
    for entry in storage.list_files(uri):
        yield entry.path, storage.join(uri, entry.path)


def _stem(path: str) -> str:
    """`path` without image suffixes, so that a.jpg, its label a.png and its mirrored mask a.jpg.png meet."""
    while path.lower().endswith(IMAGE_SUFFIXES):
        path = path.rpartition(".")[0]
    return path
