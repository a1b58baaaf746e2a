"""Daft: read_parquet, a class with a batch method, write_parquet.

python -m tests.benchmarks.peers.daft_udf BUNDLE IMAGES OUT [--model null] [--precision bfloat16]

After Daft's guide to stateful functions (docs/custom-code/cls.md): `daft.cls` loads the network once,
`daft.method.batch` gets many images at once, `max_concurrency` is one, for TensorFlow uses all cores. Daft can decode
JPEG itself (`daft.functions.decode_image`), but its decoder gives slightly other pixels than libjpeg, so that masks
would differ; threads decode and encode here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import daft

from tests.benchmarks.peers import shared
from tests.benchmarks.peers.shared import BATCH, Task, read_task, report

THREADS = 2


@daft.cls(max_concurrency=1)
class Segmenter:
    """The network, and threads around it."""

    def __init__(self, task: Task) -> None:
        self._label = shared.load_label_function(task)
        self._pool = ThreadPoolExecutor(THREADS)
        self._out = task.out

    @daft.method.batch(return_dtype=daft.DataType.binary(), batch_size=BATCH)
    def label(self, images: daft.Series) -> Any:
        """JPEG -> PNG of class ids."""
        pixels = list(self._pool.map(shared.decode, images.to_pylist()))
        masks = list(self._pool.map(shared.encode, shared.label_images(self._label, pixels)))
        shared.mark(self._out, len(masks))
        return masks


def main() -> None:
    """Label all images."""
    task = read_task(__doc__)
    segmenter = Segmenter(task)
    images = daft.read_parquet(f"{task.images}/*.parquet")
    masks = images.select(images["name"], segmenter.label(images["image"]).alias("mask"))
    masks.write_parquet(str(task.out / "masks"))
    report(task.out)


if __name__ == "__main__":
    main()
