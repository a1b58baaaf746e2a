"""Ray Train beside native MultiWorkerMirroredStrategy: the same workers, loop and data; time for each step.

python tests/benchmarks/parity.py WORK [--rounds 3] [--steps 60]

Three contenders, interleaved: "ray" is two workers in a Ray Train group; "native" two processes with a TF_CONFIG made
by hand; "alone" one process with two threads. All take the same steps of `fcn_ray.training.step` on the same images,
which are made in memory. The first ten steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fcn_ray import cluster
from fcn_ray.config import TrainConfig
from fcn_ray.config_text import load_config
from fcn_ray.datasets.scenes import write_scenes_parquet
from fcn_ray.training import group
from fcn_ray.training.preflight import Job, prepare

WARM_UP = 10
BATCH, CROP = 8, (128, 160)


def make_job(work: Path, workers: int, threads: int) -> Job:
    """A quarter of VGG16's channels, float32."""
    settings = {"data": str(work / "train.parquet"), "out": str(work / f"out-{workers}"), "batch_size": BATCH}
    settings |= {"model.width": 0.25, "model.fc_channels": 256, "augment.crop": CROP, "resume": True}
    return prepare(load_config(TrainConfig, flags=settings | {"workers.count": workers, "workers.threads": threads}))


def take_steps(job: Job, rank: int, world: int, steps: int) -> list[float]:
    """Seconds of each step after the warm-up, of this worker."""
    from fcn_ray.training.replica import build_replica
    from fcn_ray.training.step import build_step

    replica = build_replica(job, rank=rank, world=world)
    step = build_step(replica, job)
    rng = np.random.default_rng(rank)
    size = BATCH // world
    images = rng.integers(0, 255, (size, *CROP, 3), np.uint8)
    labels = rng.integers(0, len(job.labels), (size, *CROP)).astype(np.uint8)
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.monotonic()
        step(images, labels)
        seconds.append(time.monotonic() - start)
    return seconds[WARM_UP:]


def work_on_ray(orders: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker."""
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    seconds = take_steps(orders["job"], rank, world, orders["steps"])
    orders["tell"]({"kind": "seconds", "rank": rank, "seconds": seconds})


def on_ray(work: Path, steps: int) -> float:
    """Median seconds of a step of two Ray Train workers with one thread each."""
    told: list[dict[str, Any]] = []
    job = make_job(work, 2, 1)
    group.work = work_on_ray
    with group.Listener(told.append) as tell:
        group.fit(job, 2, {"job": job, "tell": tell, "steps": steps})
    return statistics.median(next(record for record in told if record["rank"] == 0)["seconds"])


def natively(work: Path, steps: int, workers: int, threads: int) -> float:
    """Median seconds of a step of processes without Ray."""
    ports = [_free_port() for _ in range(workers)]
    runs = []
    for rank in range(workers):
        task = {
            "cluster": {"worker": [f"localhost:{port}" for port in ports]},
            "task": {"type": "worker", "index": rank},
        }
        environment = os.environ | ({"TF_CONFIG": json.dumps(task)} if workers > 1 else {})
        command = [sys.executable, __file__, str(work), "--rank", str(rank)]
        command += ["--workers", str(workers), "--threads", str(threads), "--steps", str(steps)]
        runs.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
    texts = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        raise SystemExit(f"a native worker failed: {texts}")
    seconds: list[float] = json.loads(texts[0].splitlines()[-1])
    return statistics.median(seconds)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> None:
    """Run the rounds, or one native worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, help="used by the benchmark itself")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.rank is not None:
        job = make_job(options.work, options.workers, options.threads)
        print(json.dumps(take_steps(job, options.rank, options.workers, options.steps)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    write_scenes_parquet(options.work / "train.parquet", 16, seed=1)
    cluster.connect(cpus=3)
    contenders = {
        "ray": lambda: on_ray(options.work, options.steps),
        "native": lambda: natively(options.work, options.steps, 2, 1),
        "alone": lambda: natively(options.work, options.steps, 1, 2),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, run in contenders.items():
            found[name].append(run())
            print(f"round {number + 1}  {name:<7} {1000 * found[name][-1]:.1f} ms a step", flush=True)
    parity = [a / b for a, b in zip(found["ray"], found["native"], strict=True)]
    scaling = [a / b for a, b in zip(found["alone"], found["ray"], strict=True)]
    for title, ratios in (("time of ray / native", parity), ("throughput of ray / alone", scaling)):
        print(f"{title}: median {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


if __name__ == "__main__":
    main()
