"""Peak memory of the driver of a labelling job, by number of images, with a network that costs next to nothing.

python tests/benchmarks/driver_memory.py BUNDLE WORK IMAGES [IMAGES ...]

Each job runs in a process of its own over copies of one small picture, 64 rows to a chunk; what is measured is that
process, not the workers.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.images.codec import encode_image

JOB = """
import resource, sys
from fcn_ray import SegmentConfig, load_config, segment
flags = {"input": sys.argv[2], "output": sys.argv[3], "model": sys.argv[1]}
report = segment(load_config(SegmentConfig, flags=flags))
print(report.images, report.images_per_second, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    """Print images, images/s and the driver's peak memory in MiB for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("work", type=Path)
    parser.add_argument("images", type=int, nargs="+")
    arguments = parser.parse_args()
    picture = encode_image(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    for count in arguments.images:
        shutil.rmtree(arguments.work, ignore_errors=True)
        (arguments.work / "in").mkdir(parents=True)
        table = pa.table({"image": [picture] * 1400})
        for number, start in enumerate(range(0, count, 1400)):
            pq.write_table(table[: count - start], arguments.work / "in" / f"{number:05}.parquet", row_group_size=64)
        command = [sys.executable, "-c", JOB, arguments.bundle, str(arguments.work / "in"), str(arguments.work / "out")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        images, rate, peak = result.stdout.split()[-3:]
        print(f"{images} images, {float(rate):.0f} images/s, driver peak {float(peak):.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
