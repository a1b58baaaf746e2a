"""Commit: a chunk's rows become one object, put once, if absent; the object is the commit (DESIGN 5).

The first writer wins. "Already there" is success once the object is seen to be the same run's with the same rows, so
retries, zombies and two drivers at once are harmless.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray import storage
from fcn_ray.errors import AuditError, ForeignOutputError, OutOfReachError, StorageError
from fcn_ray.failpoints import fail_at
from fcn_ray.tables import schema, seal
from fcn_ray.tables.maskfile import CHUNK_KEY, ROWS_KEY, RUN_KEY, check_rows, check_whole, encode
from fcn_ray.tables.runs import Run


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is stored for a chunk: images, bytes, sha256, images by status, and whether this call wrote it.

    `bad_runs` are numbers of bad images in a row: those that it begins with, the most, and those that it ends with.
    """

    chunk_id: str
    n_rows: int
    size: int
    sha256: str
    statuses: Mapping[str, int]
    written: bool
    bad_runs: Sequence[int] = (0, 0, 0)


def commit_chunk(run: Run, table: pa.Table) -> Receipt:
    """Put the result rows of one chunk, unless they are there.

    `table` has the columns of `schema.result_schema`, and `chunk_id`, `chunk_row`, `chunk_rows` of
    `reading.label_chunk`; all others are carried over. Raises IncompleteError, and puts nothing, unless it is exactly
    one whole chunk in order with a mask or an error in each row; AuditError or ForeignOutputError when what is there is
    not the same chunk of the same run.
    """
    chunk_id = check_whole(table)
    check_rows(run, table, chunk_id)
    data, uri = encode(run, chunk_id, table), _mask_uri(run.uri, chunk_id)
    fail_at("chunk.encoded")
    if storage.put_if_absent(uri, data):
        fail_at("chunk.put")
        return _receipt(chunk_id, data, table[schema.STATUS], written=True)
    return read_receipt(run, chunk_id, table.num_rows)


def is_committed(run_uri: str, chunk_id: str) -> bool:
    """Whether the chunk is known to have its object. It only saves work: a store that may not say so stops nobody.

    Raises OutOfReachError when the store does not answer.
    """
    try:
        return storage.is_file(_mask_uri(run_uri, chunk_id))
    except OutOfReachError:
        raise
    except (StorageError, OSError):
        return False


def read_receipt(run: Run, chunk_id: str, n_rows: int) -> Receipt:
    """What is stored for a chunk of `n_rows`, from its object. Raises ForeignOutputError or AuditError unless it is a
    whole one."""
    uri = _mask_uri(run.uri, chunk_id)
    data = storage.read_bytes(uri)
    try:
        parquet = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        metadata = parquet.metadata.metadata or {}
        if seal.is_broken(data):
            raise ValueError("it is not what was written")
        status = parquet.read([schema.STATUS])[schema.STATUS]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise AuditError(f"{uri} is damaged: {error}; run `fcn-ray audit`") from error
    owner = metadata.get(RUN_KEY, b"nobody").decode(errors="replace")
    if owner != run.run_id:
        raise ForeignOutputError(f"{uri} is of run {owner}, expected {run.run_id}; choose another output folder")
    if metadata.get(CHUNK_KEY) != chunk_id.encode() or metadata.get(ROWS_KEY) != str(len(status)).encode():
        raise AuditError(f"{uri} is not the whole chunk that its name says; run `fcn-ray audit`")
    if len(status) != n_rows:
        raise AuditError(f"{uri} holds {len(status)} rows, expected {n_rows}; run `fcn-ray audit`")
    return _receipt(chunk_id, data, status, written=False)


def _mask_uri(run_uri: str, chunk_id: str) -> str:
    return storage.join(run_uri, "masks", f"{chunk_id}.parquet")


def _receipt(chunk_id: str, data: bytes, status: pa.ChunkedArray, *, written: bool) -> Receipt:
    found = status.to_pylist()
    statuses = dict(sorted(Counter(found).items()))
    return Receipt(chunk_id, len(found), len(data), storage.digest(data), statuses, written, _bad_runs(found))


def _bad_runs(statuses: Sequence[str]) -> tuple[int, int, int]:
    bad = [status != schema.OK for status in statuses]
    lengths = [sum(1 for _ in run) if is_bad else 0 for is_bad, run in groupby(bad)] or [0]
    return lengths[0], max(lengths), lengths[-1]
