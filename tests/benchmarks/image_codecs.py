"""JPEG decoding and mask encoding alone: ours beside Pillow, simplejpeg, TensorFlow and bare zstd.

python -m tests.benchmarks.image_codecs TABLE WORK [--rounds 5]

TABLE is a Parquet file with the columns image (JPEG) and mask (PNG), as camvid.py's val.parquet. One process does it
all, in interleaved rounds, on one thread and on two. Ours guards: format, size by the header, whole file, then Pillow.
zstd is no image format, but what bare compression would cost. Equal: bytes of pixels, with Pillow's.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from fcn_ray.images.codec import decode_image, decode_label, encode_mask
from tests.benchmarks.peers.environments import python_of
from tests.benchmarks.peers.shared import decode, encode
from tests.benchmarks.rounds import Outcome, Outcomes, median, print_table, ratio

Work = Callable[[Any], Any]


def encode_by_default(mask: np.ndarray) -> bytes:
    """PNG, by Pillow as it comes."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def load_decoders() -> dict[str, Work]:
    """JPEG -> (H, W, 3) uint8."""
    import simplejpeg
    import tensorflow as tf

    return {
        "ours": lambda data: decode_image(data, 10**8).pixels,
        "Pillow": decode,
        "simplejpeg": simplejpeg.decode_jpeg,
        "simplejpeg, fast DCT and upsampling": lambda data: simplejpeg.decode_jpeg(
            data, fastdct=True, fastupsample=True
        ),
        "tf.io, INTEGER_ACCURATE": lambda data: tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE").numpy(),
        "tf.io, as it comes": lambda data: tf.io.decode_jpeg(data, 3).numpy(),
    }


def load_encoders() -> dict[str, Work]:
    """(H, W) uint8 -> bytes."""
    import zstandard

    return {
        "ours": encode_mask,
        "Pillow, as it comes": encode_by_default,
        "Pillow, level 1, Z_RLE": encode,
        "zstd, level 1": lambda mask: zstandard.ZstdCompressor(level=1).compress(mask.tobytes()),
    }


def measure(work: Work, items: Sequence[Any]) -> Outcome:
    """Items per second on one thread and on two, and CPU seconds of an item on one."""
    found: Outcome = {}
    for name, threads in (("one", 1), ("two", 2)):
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, items[:10]))
            start, cpu = time.perf_counter(), time.process_time()
            list(pool.map(work, items))
            found[name] = len(items) / (time.perf_counter() - start)
            found.setdefault("cpu", (time.process_time() - cpu) / len(items))
    return found


def measure_decoder(work: Work, images: list[bytes]) -> Outcome:
    """Speed, and how the pixels differ from Pillow's."""
    pairs = [(work(data), decode(data)) for data in images[:20]]
    equal = float(np.mean([(found == expected).mean() for found, expected in pairs]))
    return measure(work, images) | {"equal": equal}


def measure_encoder(work: Work, masks: list[np.ndarray]) -> Outcome:
    """Speed, and the mean size of a mask."""
    size = float(np.mean([len(work(mask)) for mask in masks]))
    return measure(work, masks) | {"bytes": size}


def print_case(case: str, names: Sequence[str], outcomes: Outcomes, extra: tuple[str, str, int, float]) -> None:
    """One table; `extra` is the last column: head, key, digits, scale."""
    ours = outcomes.of(case, "ours")
    rows = []
    for name in names:
        theirs = outcomes.of(case, name)
        one = median(theirs, "one", 0), ratio(ours, theirs, "one")
        two = median(theirs, "two", 0), ratio(ours, theirs, "two")
        cpu = median(theirs, "cpu", 2, 1000), ratio(ours, theirs, "cpu")
        rows.append([name, *one, *two, *cpu, median(theirs, *extra[1:])])
    over = "ours / it"
    head = ["contender", "one thread, 1/s", over, "two threads, 1/s", over, "CPU ms each", over, extra[0]]
    print_table(f"### {case}", head, rows)


def main() -> None:
    """Measure what has no outcome yet; print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not find_spec("simplejpeg"):
        python = python_of("codecs", options.work / "environments")
        os.execv(python, [python, "-W", "ignore", "-m", "tests.benchmarks.image_codecs", *sys.argv[1:]])
    table = pq.read_table(options.table, columns=["image", "mask"])
    images = table["image"].to_pylist()
    masks = [decode_label(data) for data in table["mask"].to_pylist()]
    decoders, encoders = load_decoders(), load_encoders()
    outcomes = Outcomes(options.work / "outcomes.jsonl")
    outcomes.run("decoding", decoders, options.rounds, lambda name, _: measure_decoder(decoders[name], images))
    outcomes.run("encoding", encoders, options.rounds, lambda name, _: measure_encoder(encoders[name], masks))
    print_case("decoding", list(decoders), outcomes, ("equal pixels, %", "equal", 2, 100))
    print_case("encoding", list(encoders), outcomes, ("bytes", "bytes", 0, 1))


if __name__ == "__main__":
    main()
