"""Tiny trainings: settings and pictures that the tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fcn_ray.config import TrainConfig
from fcn_ray.config_text import load_config
from tests import pictures

TINY: dict[str, Any] = {
    "model.width": 0.05,
    "model.fc_channels": 8,
    "augment.crop": (32, 64),
    "optimizer.learning_rate": 0.05,
    "optimizer.warmup_steps": 2,
    "batch_size": 4,
    "epochs": 2,
    "workers.threads": 1,
    "workers.max_failures": 0,
    "deterministic": True,
    "log_steps": 1,
}


def tiny_config(data: Path, out: Path, **flags: Any) -> TrainConfig:
    """Settings by name, with __ for the dot."""
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return load_config(TrainConfig, flags=TINY | {"data": str(data), "out": str(out)} | dotted)


def write_data(folder: Path) -> Path:
    """Twelve labelled pictures of three sizes."""
    return pictures.write_parquet(folder / "train.parquet", 12, sizes=((48, 64), (40, 40), (33, 70)))


def write_without_names(data: Path, path: Path) -> Path:
    """The table `data` again, as one that does not say which classes its ids are."""
    pq.write_table(pq.read_table(data).replace_schema_metadata(None), path)
    return path


def damage(path: Path, group: int, column: str = "mask") -> None:
    """Overwrite the beginning of one column of a row group with zeros."""
    footer = pq.read_metadata(path)
    parts = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
    (part,) = (part for part in parts if part.path_in_schema.split(".")[0] == column)
    with path.open("r+b") as file:
        file.seek(part.dictionary_page_offset or part.data_page_offset)
        file.write(bytes(16))
