"""What people write by hand: Pillow, `model.predict`, argmax, a PNG file for each image, one thing after the other.

python -m tests.benchmarks.peers.plain_keras BUNDLE IMAGES OUT [--model null] [--precision bfloat16]

`model.predict` gets the images of a row group at once, in batches of 8: Keras's reference says that it is made for many
inputs, and not for loops over small batches.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tests.benchmarks.peers.shared import BATCH, LabelFunction, Task, decode, group_by_shape, mark, read_task, report

ROW_GROUP = 64


def load_predict(task: Task) -> LabelFunction:
    """uint8 images -> uint8 masks, by way of float32 images and logits in NumPy."""
    if task.model == "null":
        return lambda images: images.argmax(-1).astype(np.uint8)
    from fcn_ray.bundle import load_bundle

    bundle = load_bundle(task.bundle)
    model = bundle.build(task.precision)
    mean, std = np.float32(bundle.preprocessing.mean), np.float32(bundle.preprocessing.std)
    order = slice(None, None, -1 if bundle.preprocessing.channels == "BGR" else 1)

    def predict(images: np.ndarray) -> np.ndarray:
        inputs = (images[..., order].astype(np.float32) - mean) / std
        return model.predict(inputs, batch_size=BATCH, verbose=0).argmax(-1).astype(np.uint8)

    return predict


def main() -> None:
    """Label all images, row group by row group."""
    task = read_task(__doc__)
    predict = load_predict(task)
    count = 0
    for path in task.files:
        for rows in pq.ParquetFile(path).iter_batches(ROW_GROUP, columns=["image", "name"]):
            names = rows["name"].to_pylist()
            images = [decode(data) for data in rows["image"].to_pylist()]
            for group in group_by_shape(images, ROW_GROUP):
                for index, mask in zip(group, predict(np.stack([images[i] for i in group])), strict=True):
                    Image.fromarray(mask).save(task.out / f"{count:06}-{names[index]}.png")
                    count += 1
                mark(task.out, len(group))
    report(task.out)


if __name__ == "__main__":
    main()
