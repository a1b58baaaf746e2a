"""A labelling job without Ray and without a network: its stages one after the other, with masks of zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.config import ChunkConfig
from fcn_ray.inference.stages import (
    PIXELS,
    CommitChunks,
    DecodeImages,
    ReadChunks,
    read_receipts,
    replace_columns,
)
from fcn_ray.tables import schema
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.manifest import Manifest, finish
from fcn_ray.tables.plan import extend_plan, pending_chunks
from fcn_ray.tables.runs import open_run
from fcn_ray.tables.sources import Listing
from tests.images.case import MAX_PIXELS
from tests.pictures import LABELS


@dataclass(frozen=True)
class Labelled:
    """What a job left: the rows that are stored, what its listing left out, how many images it planned."""

    rows: list[dict[str, Any]]
    listing: Listing
    planned: int
    manifest: Manifest

    @property
    def statuses(self) -> dict[tuple[str, int], str]:
        """Status of every image by path and row; two rows of one image would be an error of their own."""
        found = {(row[schema.PATH], row[schema.ROW]): row[schema.STATUS] for row in self.rows}
        assert len(found) == len(self.rows)
        return found


def label(
    input: Path, output: Path, columns: Columns | None = None, meanwhile: Callable[[], None] = lambda: None
) -> Labelled:
    """Plan, read, decode, commit, finish; `meanwhile` happens between the plan and the reading."""
    columns = columns or Columns()
    run = open_run(str(output), str(input), {"model": "zeros", "columns": asdict(columns)}, LABELS)
    log = extend_plan(run.uri, run.input, ChunkConfig(rows=50), columns)
    meanwhile()
    read, decode = ReadChunks(run.uri, understand_input(run.input), columns), DecodeImages(MAX_PIXELS)
    commit = CommitChunks(run, LABELS, "zeros")
    receipts = [
        receipt
        for chunk in pending_chunks(log)
        for receipt in read_receipts(commit(_predict(decode(read(pa.Table.from_pylist([asdict(chunk)]))))))
    ]
    manifest = finish(run, log, receipts)
    files = sorted((Path(run.uri) / "masks").glob("*"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return Labelled(rows, log.listing, log.rows, manifest)


def _predict(table: pa.Table) -> pa.Table:
    """Class 0 everywhere, for whom decoding went well; its size is that of the pixels, not what is written beside."""
    sizes = [None if cell is None else len(cell) // 3 for cell in table[PIXELS].to_pylist()]
    added = {
        schema.MASK: pa.array([size and bytes(size) for size in sizes], pa.large_binary()),
        schema.MASK_PNG: pa.nulls(len(sizes), pa.large_binary()),
        schema.CLASS_PIXELS: pa.array([size and [size, 0, 0] for size in sizes], pa.list_(pa.int64())),
        schema.MEAN_CONFIDENCE: pa.array([size and 1.0 for size in sizes], pa.float32()),
        schema.MIN_CLASS_CONFIDENCE: pa.array([size and 1.0 for size in sizes], pa.float32()),
    }
    return replace_columns(table, added, drop=[PIXELS])
