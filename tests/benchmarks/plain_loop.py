"""The peer: what people write by hand. Pillow, model.predict, a PNG for each image; no resume, no bad images.

python tests/benchmarks/plain_loop.py BUNDLE IMAGES OUT [--batch 8]

IMAGES is a folder of Parquet files with an `image` column, all of one size. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"
START = time.monotonic()

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from PIL import Image  # noqa: E402

from fcn_ray.bundle import load_bundle  # noqa: E402


def main() -> None:
    """Label all images, batch by batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    model = bundle.build()
    mean = np.array(bundle.preprocessing.mean, np.float32)
    std = np.array(bundle.preprocessing.std, np.float32)
    order = slice(None, None, -1 if bundle.preprocessing.channels == "BGR" else 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    first, count = None, 0
    for path in sorted(arguments.images.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(arguments.batch, columns=["image"]):
            images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in batch["image"].to_pylist()]
            inputs = (np.stack(images)[..., order].astype(np.float32) - mean) / std
            for mask in model.predict(inputs, verbose=0).argmax(-1).astype(np.uint8):
                Image.fromarray(mask).save(arguments.out / f"{count:06}.png")
                count += 1
            first = first or (time.monotonic(), count)
    end = time.monotonic()
    rate = (count - first[1]) / (end - first[0])
    print(json.dumps({"images": count, "seconds": end - START, "images_per_second": rate, "first": first[0] - START}))


if __name__ == "__main__":
    main()
