"""How rows ended: chunk by chunk from the newest manifest, row by row from mask files where that does not tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.errors import AuditError
from fcn_ray.tables import schema
from fcn_ray.tables.superseded import Superseded

_READERS = 16
"""Threads that read mask files."""
_AHEAD = 64
"""Mask files that are read before they are asked for."""

Key = tuple[str, int]
"""Path and row of an image."""


def read_rows(run_uri: str, chunk_ids: Iterable[str]) -> Iterator[dict[Key, str]]:
    """(path, row) -> status of the rows of each chunk, in their order. Raises AuditError when one cannot be read."""
    remaining = iter(chunk_ids)
    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(remaining, _AHEAD)):
            yield from pool.map(partial(_read_rows, run_uri), some)


def count_current(
    run_uri: str,
    totals: Mapping[str, int],
    published: Mapping[str, Mapping[str, int]],
    superseded: Superseded,
) -> dict[str, int]:
    """Rows by status, of the `totals` of a run, without those that are superseded; `published` is of all its chunks."""
    counts, mixed = Counter(totals), []
    for name, n_rows in superseded.rows.items():
        statuses = published[name]
        if superseded.has_all(name):
            counts.subtract(statuses)
        elif len(statuses) == 1:
            counts[next(iter(statuses))] -= n_rows
        else:
            mixed.append(name)
    for name, rows in zip(mixed, read_rows(run_uri, mixed), strict=True):
        for place in superseded.parts[name]:
            counts.subtract(rows[place.path, row] for row in place.rows)
    return {status: count for status, count in sorted(counts.items()) if count}


def _read_rows(run_uri: str, chunk_id: str) -> dict[Key, str]:
    uri = storage.join(run_uri, "masks", f"{chunk_id}.parquet")
    columns = [schema.PATH, schema.ROW, schema.STATUS]
    try:
        with storage.open_file(uri) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(columns).select(columns)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise AuditError(f"{uri} is damaged: {error}; run `fcn-ray audit`") from error
    paths, rows, statuses = (column.to_pylist() for column in table.columns)
    return dict(zip(zip(paths, rows, strict=True), statuses, strict=True))
