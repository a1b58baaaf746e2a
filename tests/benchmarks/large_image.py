"""Memory and time of one large image in tiles: its peak is that of a tile, whatever the size of the image.

python tests/benchmarks/large_image.py WORK WIDTH FC_CHANNELS SIDE [SIDE ...]

WIDTH and FC_CHANNELS are those of the FCN-8s (1.0 4096 is the paper's); SIDE is the side of a square image of noise,
each in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import os, resource, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
from fcn_ray.bundle import load_bundle
from fcn_ray.config import PredictConfig
from fcn_ray.inference.predictor import Predictor
bundle, side = sys.argv[1], int(sys.argv[2])
settings = PredictConfig()
predictor = Predictor(load_bundle(bundle), settings)
image = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
start = time.monotonic()
found, = predictor.predict([image])
assert found.class_pixels.sum() == side**2
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"| {side} | {len(predictor._plan(side, side))} | {time.monotonic() - start:.0f} | {peak:.2f} |")
"""


def main() -> None:
    """Save a bundle of random weights, predict each image in a fresh process, print a table."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from fcn_ray.bundle import save_bundle
    from fcn_ray.config import ModelSpec, Preprocessing
    from fcn_ray.labels import LabelSet
    from fcn_ray.models.fcn import build_fcn

    work, width, channels = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    bundle = work / f"bundle-{width:g}-{channels}"
    spec = ModelSpec(width=width, fc_channels=channels, num_classes=11)
    if not bundle.exists():
        labels = LabelSet.from_names([f"class-{i}" for i in range(11)])
        save_bundle(str(bundle), build_fcn(spec), spec, labels, Preprocessing(), {})
    print("| side, pixels | tiles | seconds | peak of the process, GiB |\n| --- | --- | --- | --- |", flush=True)
    for side in sys.argv[4:]:
        subprocess.run([sys.executable, "-c", RUN, str(bundle), side], check=True)


if __name__ == "__main__":
    main()
