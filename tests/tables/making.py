"""Small inputs and finished runs for the tests of tables: no network, no Ray, the rows are made by hand."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fcn_ray.config import ChunkConfig
from fcn_ray.labels import LabelSet
from fcn_ray.tables import schema
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import PlanLog, extend_plan, pending_chunks, read_chunk
from fcn_ray.tables.planfile import ChunkRef
from fcn_ray.tables.reading import label_chunk, read_rows
from fcn_ray.tables.runs import Run, open_run

LABELS = LabelSet.from_names(["sky", "road", "car"])
IDENTITY = {"model": "feed", "max_pixels": 1000}
HEIGHT, WIDTH = 3, 4


def png(value: int = 0, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """An image of one colour; size is (width, height)."""
    file = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    return folder


def write_table(path: Path, rows: int, group: int = 4, **columns: Any) -> Path:
    """`rows` images whose bytes are b"image 0", b"image 1"..., unless `columns` has others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [b"image %d" % row for row in range(rows)]} | columns)
    pq.write_table(table, path, row_group_size=group)
    return path


def result_rows(run: Run, ref: ChunkRef, columns: Columns, **changes: Any) -> pa.Table:
    """What the pipeline would make of a chunk: masks of class 1, unless `changes` has other columns."""
    read = label_chunk(
        read_rows(understand_input(run.input), read_chunk(run.uri, ref), columns), ref.chunk_id, ref.plan
    )
    made = result_columns(run, read.num_rows) | changes
    types = {field.name: field.type for field in schema.result_schema(LABELS)}
    kept = {name: read[name] for name in read.column_names}
    del kept[schema.IMAGE], kept[schema.SOURCE_ERROR], kept[schema.SOURCE_MESSAGE]
    return pa.table(kept | {name: pa.array(cells, types[name]) for name, cells in made.items()})


def result_columns(run: Run, n_rows: int) -> dict[str, list[Any]]:
    row: Mapping[str, Any] = {
        schema.MASK: {"bytes": png(1, "L"), "path": None},
        schema.HEIGHT: HEIGHT,
        schema.WIDTH: WIDTH,
        schema.CLASS_PIXELS: [0, HEIGHT * WIDTH, 0],
        schema.MEAN_CONFIDENCE: 0.75,
        schema.MIN_CLASS_CONFIDENCE: 0.5,
        schema.STATUS: schema.OK,
        schema.ERROR: None,
        schema.FLAGS: [],
        schema.MODEL_DIGEST: "feed",
        schema.RUN_ID: run.run_id,
    }
    return {name: [cell] * n_rows for name, cell in row.items()}


def start_run(root: Path | str, rows: int = 3) -> tuple[Run, PlanLog]:
    """A planned run over `root/in` with its output in `root/out`."""
    run = open_run(f"{root}/out", f"{root}/in", IDENTITY, LABELS)
    return run, extend_plan(run.uri, run.input, ChunkConfig(rows=rows), Columns())


def commit_pending(run: Run, log: PlanLog) -> Iterator[ChunkRef]:
    for ref in pending_chunks(log):
        commit_chunk(run, result_rows(run, ref, Columns()))
        yield ref


def finished_run(root: Path | str, rows: int = 3) -> Run:
    """A finished run over whatever is in `root/in`."""
    run, log = start_run(root, rows)
    list(commit_pending(run, log))
    finish(run, log)
    return run
