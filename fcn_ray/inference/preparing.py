"""The first stage of the pipeline: a chunk is read and decoded, and no image of it can take the job down."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pyarrow as pa

from fcn_ray.inference import task
from fcn_ray.inference.isolation import prepare_apart
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.stages import DecodeImages, ReadChunks, mark_committed
from fcn_ray.tables.commit import is_committed
from fcn_ray.tables.plan import read_chunk
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.reading import label_chunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrepareChunks:
    """`read` and `decode` as one: nothing encoded crosses a process border.

    Reads: one row, the ChunkRef of a chunk. Leaves: the decoded rows of that chunk. An image that takes more than
    `limits` ends the process, or fails; when Ray tries the chunk again, its rows go one by one through a process of
    their own.
    """

    read: ReadChunks
    decode: DecodeImages
    limits: Limits

    def __call__(self, table: pa.Table) -> pa.Table:
        """The stage. A chunk that another job has committed meanwhile is not done again."""
        (row,) = table.to_pylist()
        chunk = ChunkRef(**row)
        if is_committed(self.read.run, chunk.chunk_id):
            return mark_committed(chunk)
        if task.attempt() == 0:
            rows = self.read(table)
            return self.decode(rows, self.limits.watch)
        logger.warning("chunk %s took its process down, or lost it: its images are decoded one by one", chunk.chunk_id)
        pieces = read_chunk(self.read.run, chunk)
        rows = prepare_apart(self.read, pieces, self.decode, self.limits)
        return label_chunk(rows, chunk.chunk_id, chunk.plan)
