"""fcn-ray segment beside the plain loop: interleaved rounds, each contender its own process, medians.

python tests/benchmarks/segment_speed.py BUNDLE IMAGES WORK [--rounds 3]

Total seconds include the start; images/s are those between the first and the last finished batch or chunk. The masks of
both are compared pixel by pixel in the first round.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).parent

OURS = """
import dataclasses, json, sys, time
start = time.monotonic()
from fcn_ray import SegmentConfig, load_config, segment
flags = {"input": sys.argv[2], "output": sys.argv[3], "model": sys.argv[1]}
report = segment(load_config(SegmentConfig, None, sys.argv[4:], flags))
print(json.dumps({"images": report.images, "seconds": time.monotonic() - start,
                  "images_per_second": report.images_per_second, "first": report.first_commit_seconds}))
"""


def run(command: list[str]) -> dict[str, Any]:
    """The JSON line that a contender prints last, and the CPU seconds of its whole process tree."""
    before = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found | {"wall": time.monotonic() - before}


def agreement(ours: Path, plain: Path) -> float:
    """Share of equal pixels over all images."""
    masks = {}
    for file in ours.glob("run=*/masks/*.parquet"):
        for row in pq.read_table(file, columns=["path", "row", "mask"]).to_pylist():
            masks[row["path"], row["row"]] = row["mask"]["bytes"]
    equal = total = 0
    for number, key in enumerate(sorted(masks)):
        a = np.asarray(Image.open(io.BytesIO(masks[key])))
        b = np.asarray(Image.open(plain / f"{number:06}.png"))
        equal, total = equal + int((a == b).sum()), total + a.size
    return equal / total


def main() -> None:
    """Run the rounds, print a line for each and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images")
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    for number in range(arguments.rounds):
        for name in ("plain", "ours"):
            out = arguments.work / name
            shutil.rmtree(out, ignore_errors=True)
            script = [str(HERE / "plain_loop.py")] if name == "plain" else ["-c", OURS]
            extra = arguments.set if name == "ours" else []
            found = run([sys.executable, *script, arguments.bundle, arguments.images, str(out), *extra])
            rounds[name].append(found)
            print(number + 1, name, {key: round(value, 2) for key, value in found.items()}, flush=True)
        if number == 0:
            equal = agreement(arguments.work / "ours", arguments.work / "plain")
            print(f"equal pixels: {100 * equal:.4f} %")
    for key in ("images_per_second", "wall", "first"):
        pairs = zip(rounds["ours"], rounds["plain"], strict=True)
        ratios = [ours[key] / plain[key] for ours, plain in pairs]
        medians = {name: round(statistics.median(f[key] for f in found), 2) for name, found in rounds.items()}
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{key}: {medians}, ratio ours/plain {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
