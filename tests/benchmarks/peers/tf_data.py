"""tf.data and one `model.predict` over all images.

python -m tests.benchmarks.peers.tf_data BUNDLE IMAGES OUT [--model null] [--precision bfloat16]

As TensorFlow's guide to tf.data performance has it: decoding is mapped in parallel, batches are prefetched, both by
AUTOTUNE. Normalisation and argmax are part of the Keras model. A callback takes each batch of masks, and threads encode
them into a Parquet file. All images must be of one size. INTEGER_ACCURATE is the decoding of the other contenders;
TensorFlow's default gives slightly other pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.peers.shared import BATCH, Task, build_label_model, encode, mark, read_task, report

ROW_GROUP = 64


def read_images(task: Task, names: list[str]) -> Any:
    """Batches of uint8 images; `names` is filled on the way."""
    import tensorflow as tf

    def rows() -> Iterator[list[bytes]]:
        for path in task.files:
            for batch in pq.ParquetFile(path).iter_batches(ROW_GROUP, columns=["image", "name"]):
                names.extend(batch["name"].to_pylist())
                yield batch["image"].to_pylist()

    def decode(data: Any) -> Any:
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")

    images = tf.data.Dataset.from_generator(rows, output_signature=tf.TensorSpec((None,), tf.string)).unbatch()
    return images.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def main() -> None:
    """Label all images."""
    task = read_task(__doc__)
    import keras

    names: list[str] = []
    masks: list[Future[bytes]] = []
    model = build_label_model(task)
    with ThreadPoolExecutor(2) as pool:

        class Encode(keras.callbacks.Callback):
            def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
                found = logs["outputs"]
                masks.extend(pool.submit(encode, mask) for mask in found)
                mark(task.out, len(found))

        model.predict(read_images(task, names), callbacks=[Encode()], verbose=0)
        table = pa.table({"name": names, "mask": pa.array([mask.result() for mask in masks], pa.binary())})
    pq.write_table(table, task.out / "masks.parquet", row_group_size=ROW_GROUP, compression="none")
    report(task.out)


if __name__ == "__main__":
    main()
