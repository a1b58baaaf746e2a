"""The strongest single process that fits on a page: nothing waits, nothing is copied twice, nothing is guarded.

python -m tests.benchmarks.peers.hand_tuned BUNDLE IMAGES OUT [--model null] [--precision bfloat16] [--onnx FILE]

Threads read and decode (simplejpeg, which lets go of the interpreter) while the network works on the window before;
images of one size go through one compiled function, uint8 in, uint8 class ids out; threads encode (zlib's run-length
strategy) and one more writes a Parquet file for each input file. With --onnx the function is ONNX Runtime's. No
resume, no bad images, one machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from tests.benchmarks.peers.shared import (
    LabelFunction,
    encode,
    group_by_shape,
    load_label_function,
    mark,
    read_task,
    report,
)

WINDOW = 64
"""Rows read, and grouped by size, at once: a row group of the input."""

THREADS = 2
SCHEMA = pa.schema({"name": pa.string(), "mask": pa.binary()})

Window = tuple[Path, list[str], list["Future[np.ndarray]"]]


def read_windows(files: list[Path], pool: ThreadPoolExecutor) -> Iterator[Window]:
    """(file, names, images being decoded) of each window."""
    for path in files:
        for rows in pq.ParquetFile(path).iter_batches(WINDOW, columns=["image", "name"]):
            images = [pool.submit(simplejpeg.decode_jpeg, data) for data in rows["image"].to_pylist()]
            yield path, rows["name"].to_pylist(), images


def one_ahead(windows: Iterator[Window]) -> Iterator[Window]:
    """The same, each begun while the one before it is worked on."""
    previous = None
    for window in windows:
        if previous:
            yield previous
        previous = window
    if previous:
        yield previous


class Writer:
    """A Parquet file of masks for each input file."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path: Path | None = None
        self._file: pq.ParquetWriter | None = None

    def write(self, path: Path, names: list[str], masks: list[Future[bytes]]) -> None:
        """One window, once its masks are encoded."""
        if path != self._path:
            self.close()
            self._path = path
            self._file = pq.ParquetWriter(self._out / path.name, SCHEMA, compression="none")
        assert self._file is not None
        self._file.write_table(pa.table({"name": names, "mask": [mask.result() for mask in masks]}, SCHEMA))
        mark(self._out, len(names))

    def close(self) -> None:
        """Finish the file that is open."""
        if self._file:
            self._file.close()


def label_window(label: LabelFunction, images: list[np.ndarray], pool: ThreadPoolExecutor) -> list[Future[bytes]]:
    """Masks being encoded, in the order of `images`."""
    found: dict[int, Future[bytes]] = {}
    for group in group_by_shape(images):
        masks = label(np.stack([images[i] for i in group]))
        found |= {index: pool.submit(encode, mask) for index, mask in zip(group, masks, strict=True)}
    return [found[i] for i in range(len(images))]


def main() -> None:
    """Label all images."""
    task = read_task(__doc__)
    label = load_label_function(task)
    writer = Writer(task.out)
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(1) as writing:
        written = []
        for path, names, decoded in one_ahead(read_windows(task.files, pool)):
            masks = label_window(label, [image.result() for image in decoded], pool)
            written.append(writing.submit(writer.write, path, names, masks))
        for done in written:
            done.result()
    writer.close()
    report(task.out)


if __name__ == "__main__":
    main()
