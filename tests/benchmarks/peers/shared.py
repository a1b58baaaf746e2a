"""What the contenders share: arguments, the network, the null model, PNG, and marks of what was finished when.

Of fcn_ray they take the bundle and its network, which must be the same for all; nothing of its engine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow leaves it off on some CPUs, where it is faster, too

import numpy as np

if TYPE_CHECKING:
    import keras

START = "BENCHMARK_START"
"""In the environment: time.monotonic() when the command was started, the same clock in all processes of a machine."""

BATCH = 8
"""Images of 480x360 in one forward pass; fcn_ray's default (predict.batch_pixels) comes to as many."""

_IMPORTED = time.monotonic()

LabelFunction = Callable[[np.ndarray], np.ndarray]
"""(N, H, W, 3) uint8 RGB -> (N, H, W) uint8 class ids."""


@dataclass(frozen=True)
class Task:
    """The command line of every contender."""

    bundle: str
    images: Path
    """Folder of Parquet files with the columns image (JPEG) and name."""
    out: Path
    model: str
    precision: Any
    onnx: str | None = None
    """The network for ONNX Runtime (onnx_model.py), in the place of the bundle's."""

    @property
    def files(self) -> list[Path]:
        """The input files in order."""
        return sorted(self.images.glob("*.parquet"))


def read_task(about: str | None) -> Task:
    """The command line; OUT is made anew."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=["network", "null"], default="network")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--onnx")
    task = Task(**vars(parser.parse_args()))
    shutil.rmtree(task.out, ignore_errors=True)
    task.out.mkdir(parents=True)
    return task


def build_label_model(task: Task) -> keras.Model:
    """uint8 RGB in, uint8 class ids out, as one Keras model; the null model has no layers but the argmax."""
    import keras
    from keras import ops

    images = keras.Input((None, None, 3), dtype="uint8")
    logits = images
    if task.model == "network":
        from fcn_ray.bundle import load_bundle

        bundle = load_bundle(task.bundle)
        preprocessing = bundle.preprocessing
        pixels = ops.cast(images, "float32")
        if preprocessing.channels == "BGR":
            pixels = ops.flip(pixels, axis=-1)
        inputs = (pixels - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
        logits = bundle.build(task.precision)(inputs)
    return keras.Model(images, ops.cast(ops.argmax(logits, axis=-1), "uint8"))


def load_label_function(task: Task, threads: int = 0) -> LabelFunction:
    """The same, compiled into one TensorFlow function for all sizes; NumPy for the null model."""
    if task.model == "null":
        return label_null
    if task.onnx:
        from tests.benchmarks.peers.onnx_model import load_session

        return load_session(task.onnx)
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    model = build_label_model(task)
    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8)]
    compiled = tf.function(lambda images: model(images, training=False), input_signature=signature, autograph=False)
    return lambda images: compiled(images).numpy()


def label_null(images: np.ndarray) -> np.ndarray:
    """The null model: the class of a pixel is its strongest channel."""
    return images.argmax(axis=-1).astype(np.uint8)


def decode(data: bytes) -> np.ndarray:
    """JPEG -> (H, W, 3) uint8 RGB, by Pillow."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def encode(mask: np.ndarray) -> bytes:
    """(H, W) uint8 -> PNG, by Pillow with the settings that are fastest for maps of regions: level 1, Z_RLE."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=1, compress_type=3)
    return buffer.getvalue()


def label_images(label: LabelFunction, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Masks in the order of `images`; those of one size go through together, BATCH at a time."""
    masks: dict[int, np.ndarray] = {}
    for group in group_by_shape(images):
        masks |= zip(group, label(np.stack([images[i] for i in group])), strict=True)
    return [masks[i] for i in range(len(images))]


def group_by_shape(images: Sequence[np.ndarray], most: int = BATCH) -> Iterator[list[int]]:
    """Indices of images of one size, at most so many together."""
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        places[image.shape].append(index)
    for group in places.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def mark(out: Path | str, images: int) -> None:
    """Note that so many more images are finished; any process of the contender may."""
    with open(f"{out}/marks", "a", encoding="ascii") as file:
        file.write(f"{time.monotonic()} {images}\n")


def report(out: Path) -> None:
    """Print the JSON line: images, seconds since the start of the command, to the first result, and the steady rate."""
    end = time.monotonic()
    start = float(os.environ.get(START, _IMPORTED))
    marks = sorted(tuple(map(float, line.split())) for line in (out / "marks").read_text().splitlines())
    (first, n_first), (last, _) = marks[0], marks[-1]
    images = sum(count for _, count in marks)
    found = {
        "images": int(images),
        "seconds": end - start,
        "first_seconds": first - start,
        "images_per_second": (images - n_first) / (last - first) if last > first else None,
        "steady_images": int(images - n_first),
        "first_at": first,
        "last_at": last,
    }
    print(json.dumps(found))
