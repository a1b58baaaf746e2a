"""read_masks(output): the current rows of a run as a pyarrow dataset, which DuckDB, polars and pandas read too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.errors import SchemaError
from fcn_ray.tables import planfile, schema
from fcn_ray.tables.arrow_files import open_filesystem, path_in
from fcn_ray.tables.plan import is_done, list_done, read_states
from fcn_ray.tables.planfile import Place
from fcn_ray.tables.runs import find_run, read_labels
from fcn_ray.tables.superseded import find_superseded

_READERS = 16
"""Threads that look at mask files for their columns."""

_LOST = {"unreadable", "changed"}
"""Statuses of a chunk whose table could not be read: its rows lack what is carried over."""


def read_masks(output: str, run: str | None = None) -> ds.Dataset:
    """The current rows of the run in `output` (of the one called `run`, when there are several), masks included.

    All that is done, finished or not. Of an image that has several rows, because it changed or was tried again, only
    the row of the newest plan that is done is there; rows of inputs that were deleted stay. The columns are those of
    `schema.result_schema`, carried over ones of all tables included, null where a table has none.

    With superseded rows it is a filtered dataset, which cannot give its fragments. Raises ConfigError when there is no
    such run, or several to choose from; SchemaError when tables carry columns of one name that do not go together.
    """
    uri = storage.absolute(find_run(output, run))
    labels, newest = read_labels(uri), planfile.newest_plan(uri)
    done = list_done(uri)
    superseded = find_superseded(uri, newest, partial(is_done, done))
    states = read_states(uri, newest, done)
    chunks = [ref.chunk_id for ref, is_done in states if is_done and not superseded.has_all(ref.chunk_id)]
    dataset = ds.FileSystemDataset.from_paths(
        [path_in(_mask_uri(uri, name)) for name in chunks],
        schema=schema.result_schema(labels, _join(uri, _table_chunks(uri, newest, set(chunks)))),
        format=ds.ParquetFileFormat(
            default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        ),
        filesystem=open_filesystem(uri),
    )
    mixed = [superseded.parts[name] for name in chunks if name in superseded.parts]
    return dataset.filter(~_is_one_of(mixed)) if mixed else dataset


def _is_one_of(chunks: Iterable[Sequence[Place]]) -> ds.Expression:
    """True for the rows at these places, by path, row and plan in one string (read from its end, there is one way)."""
    found = [f"{place.path}#{row}#{place.plan}" for place in chain.from_iterable(chunks) for row in place.rows]
    row, plan = (ds.field(name).cast(pa.string()) for name in (schema.ROW, schema.PLAN))
    return pc.binary_join_element_wise(ds.field(schema.PATH), row, plan, "#").isin(pa.array(found, pa.string()))


def _table_chunks(run_uri: str, newest: int, chunks: set[str]) -> Iterator[list[str]]:
    """The chunks, of those in `chunks`, that each table of each plan is in."""
    for number in range(1, newest + 1):
        for _, found in groupby(planfile.read_table_chunks(run_uri, number), key=lambda row: row[0]):
            yield [name for _, name in found if name in chunks]


def _join(run_uri: str, tables: Iterator[list[str]]) -> pa.Schema:
    """The columns that are carried over from all tables."""
    with ThreadPoolExecutor(_READERS) as pool:
        schemas = list(pool.map(partial(_read_carried, run_uri), tables))
    try:
        return pa.unify_schemas([pa.schema([]), *schemas], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise SchemaError(
            f"tables of {run_uri} have columns of one name that do not go together: {error}; "
            f"read the files of {run_uri}/masks one by one, or label such tables into another output folder"
        ) from error


def _read_carried(run_uri: str, chunks: Sequence[str]) -> pa.Schema:
    """What is carried over from a table: the columns of the first chunk that shows it."""
    for name in chunks:
        with storage.open_file(_mask_uri(run_uri, name)) as file:
            metadata = pq.read_metadata(file)
        fields = [field for field in metadata.schema.to_arrow_schema() if field.name not in schema.RESERVED]
        if fields or not _is_lost(metadata):
            return pa.schema(fields)
    return pa.schema([])


def _is_lost(metadata: pq.FileMetaData) -> bool:
    """True when all rows have a status of a table that could not be read, by the statistics in the footer."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    found = [column.statistics for column in columns if column.path_in_schema == schema.STATUS]
    return all(status is None or (status.min == status.max and status.min in _LOST) for status in found)


def _mask_uri(run_uri: str, chunk_id: str) -> str:
    return storage.join(run_uri, "masks", f"{chunk_id}.parquet")
