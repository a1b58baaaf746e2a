"""Peak memory of the processes of a labelling job, by number of images, with a network that costs next to nothing.

python -m tests.benchmarks.memory BUNDLE WORK IMAGES [IMAGES ...] [--rows 64]

Each job runs in a process of its own over copies of one small picture, ROWS of them to a chunk. `driver at most` is the
kernel's figure, with the libraries and the part of Ray's object store that the driver has seen. The others are the
largest anonymous memory seen of the driver and of its workers (looked at five times a second): what processes share
belongs to none of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from fcn_ray.images.codec import encode_image

JOB = """
import json, resource, sys
from fcn_ray import SegmentConfig, load_config, segment
flags = {"input": sys.argv[2], "output": sys.argv[3], "model": sys.argv[1], "chunk.rows": int(sys.argv[4])}
report = segment(load_config(SegmentConfig, flags=flags))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps({"images": report.images, "images/s": round(report.images_per_second), "driver at most": peak}))
"""

WORKERS = {"PrepareChunks": "decoding", "MapWorker": "predicting", "CommitChunks": "committing"}
"""What stands in the titles of Ray's processes."""


def write_input(folder: Path, count: int) -> None:
    """Tables of 1,400 copies of one small picture."""
    picture = encode_image(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    folder.mkdir(parents=True)
    table = pa.table({"image": [picture] * 1400})
    for number, start in enumerate(range(0, count, 1400)):
        pq.write_table(table[: count - start], folder / f"{number:05}.parquet", row_group_size=64)


def watch(job: subprocess.Popen[str]) -> dict[str, int]:
    """The largest anonymous memory of a process of each kind until the job ends, MiB."""
    peaks = dict.fromkeys(["driver", *WORKERS.values()], 0)
    root = psutil.Process(job.pid)
    while job.poll() is None:
        for process in [root, *root.children(recursive=True)]:
            try:
                title = " ".join(process.cmdline())
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue
            anonymous = next((line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")), "0")
            kinds = ["driver"] if process is root else [kind for name, kind in WORKERS.items() if name in title]
            for kind in kinds:
                peaks[kind] = max(peaks[kind], int(anonymous) >> 10)
        time.sleep(0.2)
    return peaks


def main() -> None:
    """Print images, images/s and peaks in MiB for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("work", type=Path)
    parser.add_argument("images", type=int, nargs="+")
    parser.add_argument("--rows", type=int, default=64, help="to a chunk")
    arguments = parser.parse_args()
    for count in arguments.images:
        shutil.rmtree(arguments.work, ignore_errors=True)
        write_input(arguments.work / "in", count)
        places = [arguments.bundle, str(arguments.work / "in"), str(arguments.work / "out")]
        command = [sys.executable, "-c", JOB, *places, str(arguments.rows)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
            peaks = watch(job)
            text = job.stdout.read() if job.stdout else ""
        if job.returncode:
            raise SystemExit(f"the job ended with {job.returncode}: {text}")
        print(json.loads(text.splitlines()[-1]) | peaks, flush=True)


if __name__ == "__main__":
    main()
