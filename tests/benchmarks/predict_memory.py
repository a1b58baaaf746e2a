"""Memory of an actor by network: the peak that is seen, beside what `fcn-ray segment` reserves for it.

python -m tests.benchmarks.predict_memory WORK [NAME ...]

Each network, with random weights, predicts noise in a process of its own: one square image of the largest size that
goes whole, and in another process sixteen of 480x360, several passes at once where there are such. Looked at every 10
ms is its anonymous memory. The room for a chunk's pixels is left out on both sides.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fcn_ray.config_text import load_config

NETWORKS: dict[str, dict[str, Any]] = {
    "VGG16 at width 0.25, fc 256, 11 classes": {"width": 0.25, "fc_channels": 256, "num_classes": 11},
    "the same, 150 classes": {"width": 0.25, "fc_channels": 256, "num_classes": 150},
    "the same, 21 classes, learned deconvolutions": {
        "width": 0.25,
        "fc_channels": 256,
        "num_classes": 21,
        "upsampling": "deconv_learned",
    },
    "the same, 21 classes, fixed deconvolutions": {
        "width": 0.25,
        "fc_channels": 256,
        "num_classes": 21,
        "upsampling": "deconv_fixed",
    },
    "VGG16, fc 4096, 21 classes": {"num_classes": 21},
    "AlexNet, fc 4096, 21 classes": {"backbone": "alexnet", "num_classes": 21},
    "ResNet50, 21 classes": {"backbone": "resnet50", "num_classes": 21},
    "MobileNetV3 large, 21 classes": {"backbone": "mobilenetv3_large", "num_classes": 21},
}

SMALL = (16, 360, 480)

MEASURE = """
import sys, threading, time
import numpy as np
from fcn_ray.bundle import load_bundle
from fcn_ray.config import PredictConfig
from fcn_ray.inference.predictor import Predictor

def look():
    while True:
        with open("/proc/self/status") as status:
            peaks.append(next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) << 10)
        time.sleep(0.01)

bundle, pixels, precision = sys.argv[1], int(sys.argv[2]), sys.argv[3]
count, height, width = map(int, sys.argv[4:])
peaks = []
threading.Thread(target=look, daemon=True).start()
settings = PredictConfig(tile_pixels=pixels, batch_pixels=pixels)
predictor = Predictor(load_bundle(bundle), settings, precision=precision)
predictor.predict(list(np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8)))
print(max(peaks))
"""


def measure(bundle: str, pixels: int, images: tuple[int, int, int], precision: str = "float32") -> int:
    """Bytes of anonymous memory, at most, of a process that predicts so many images, of that height and width."""
    command = [sys.executable, "-c", MEASURE, bundle, str(pixels), precision, *map(str, images)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def reserved(bundle: str, pixels: int) -> int:
    """Bytes that a job reserves for it, but for the pixels of a chunk."""
    from fcn_ray.bundle import load_bundle
    from fcn_ray.config import SegmentConfig
    from fcn_ray.inference.memory import reserve
    from fcn_ray.inference.stages import PIXELS_ROOM

    places = {"input": "in", "output": "out", "model": bundle}
    settings = {"predict.tile_pixels": pixels, "predict.batch_pixels": pixels}
    return reserve(load_config(SegmentConfig, flags=places | settings), load_bundle(bundle)).predict - PIXELS_ROOM


def save_network(folder: Path, spec: dict[str, Any]) -> None:
    """A bundle of random weights."""
    from fcn_ray.bundle import save_bundle
    from fcn_ray.config import ModelSpec, Preprocessing
    from fcn_ray.labels import LabelSet
    from fcn_ray.models.fcn import build_fcn

    built = ModelSpec(**spec)
    labels = LabelSet.from_names([f"class-{number}" for number in range(built.num_classes)])
    save_bundle(str(folder), build_fcn(built), built, labels, Preprocessing(), {})


def main() -> None:
    """Print a table."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME", help=f"of {list(NETWORKS)}")
    parser.add_argument("--pixels", type=int, default=2_097_152)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    print("| network | weights, MiB | one large, MiB | sixteen small, MiB | reserved, MiB | most / reserved |")
    print("| --- | --- | --- | --- | --- | --- |")
    side = int(arguments.pixels**0.5) // 32 * 32
    for name in arguments.names:
        folder = arguments.work / f"network-{list(NETWORKS).index(name)}"
        if not (folder / "model.json").exists():
            save_network(folder, NETWORKS[name])
        weights = (folder / "model.safetensors").stat().st_size
        seen = [
            measure(str(folder), arguments.pixels, images, arguments.precision) for images in ((1, side, side), SMALL)
        ]
        room = reserved(str(folder), arguments.pixels)
        cells = [name, *(f"{count >> 20:,}" for count in (weights, *seen, room)), f"{max(seen) / room:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
