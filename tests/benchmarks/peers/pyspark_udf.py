"""PySpark: read.parquet, mapInPandas, write.parquet, on one machine.

python -m tests.benchmarks.peers.pyspark_udf BUNDLE IMAGES OUT [--model null] [--precision bfloat16]

After Spark's reference of `DataFrame.mapInPandas`, and of `predict_batch_udf`, which keeps the network from task to
task as this does: one Python worker for each core, with a network of its own and one thread of TensorFlow. An Arrow
batch has few rows; the default of 10,000 would hold gigabytes of images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from tests.benchmarks.peers import shared
from tests.benchmarks.peers.shared import BATCH, LabelFunction, Task, read_task, report

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64


@cache
def load_once(task: Task) -> LabelFunction:
    """The network of this worker process."""
    return shared.load_label_function(task, threads=1)


def label_frames(frames: Iterator[pd.DataFrame], task: Task) -> Iterator[pd.DataFrame]:
    """name, image -> name, mask."""
    label = load_once(task)
    for frame in frames:
        for start in range(0, len(frame), BATCH):
            part = frame[start : start + BATCH]
            images = [shared.decode(data) for data in part["image"]]
            masks = [shared.encode(mask) for mask in shared.label_images(label, images)]
            shared.mark(task.out, len(part))
            yield part[["name"]].assign(mask=masks)


def main() -> None:
    """Label all images."""
    task = read_task(__doc__)
    from pyspark.sql import SparkSession

    from tests.benchmarks.peers import pyspark_udf  # by its real name, for the workers

    os.environ["PYSPARK_PYTHON"] = sys.executable
    cores = os.cpu_count()
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", ROWS)
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    images = spark.read.parquet(str(task.images)).select("name", "image")
    masks = images.mapInPandas(lambda frames: pyspark_udf.label_frames(frames, task), "name string, mask binary")
    masks.write.parquet(str(task.out / "masks"))
    report(task.out)
    spark.stop()


if __name__ == "__main__":
    main()
