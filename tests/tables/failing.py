"""Commits chunks in which some rows are bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import Receipt, commit_chunk
from fcn_ray.tables.plan import PlanLog, pending_chunks, read_chunk
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.runs import Run
from tests.tables.making import result_columns, result_rows

Key = tuple[str, int]
"""Path and row."""


def keys_of(run: Run, ref: ChunkRef) -> list[Key]:
    """The images of a chunk."""
    pieces = read_chunk(run.uri, ref)
    return [(piece.path, row) for piece in pieces for row in range(piece.first_row, piece.first_row + piece.n_rows)]


def commit_all(run: Run, log: PlanLog, bad: Mapping[Key, str] | None = None) -> list[Receipt]:
    """Commit all pending chunks; the rows in `bad` have that status and no mask."""
    return [commit_rows(run, ref, bad or {}) for ref in pending_chunks(log)]


def commit_rows(run: Run, ref: ChunkRef, bad: Mapping[Key, str]) -> Receipt:
    columns: dict[str, list[Any]] = result_columns(run, ref.n_rows)
    for index, key in enumerate(keys_of(run, ref)):
        if key in bad:
            columns["status"][index], columns["error"][index] = bad[key], "failed"
            for name in ("mask", "height", "width", "class_pixels", "mean_confidence", "min_class_confidence"):
                columns[name][index] = None
    return commit_chunk(run, result_rows(run, ref, Columns(), **columns))
