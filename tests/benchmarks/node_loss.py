"""A training that loses a node in the middle of an epoch, killed without grace: does it end with the right steps?

python tests/benchmarks/node_loss.py WORK [--lose worker|input]

A cluster on this machine: a head without CPUs and three nodes of one CPU each, two for the workers and one for what
reads their input. `--lose worker` (the default) kills a node that holds a worker, `--lose input` the one that does not.
Then the same training on this machine, where nothing is lost, and the loss of the last epoch of both.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from fcn_ray import train
from fcn_ray.config import TrainConfig
from fcn_ray.config_text import dump_config, load_config
from fcn_ray.datasets.scenes import write_scenes_parquet
from fcn_ray.training.checkpoints import list_checkpoints
from fcn_ray.training.curve import read_curve

SCENES, EPOCHS = 80, 2
STEPS = 20
"""In an epoch."""
NOISE = 0.05
"""Largest relative difference of losses: fewer workers take other batches, and drop out other units."""


def make_config(work: Path, out: str, address: str | None = None) -> TrainConfig:
    """The training, on the cluster at `address` or on this machine."""
    settings: dict[str, Any] = {
        "data": str(work / "train.parquet"),
        "out": str(work / out),
        "address": address,
        "epochs": EPOCHS,
    }
    settings |= {"batch_size": SCENES // STEPS, "checkpoint_steps": 5, "optimizer.learning_rate": 0.05}
    settings |= {"model.width": 0.05, "model.fc_channels": 8, "augment.crop": (64, 64), "workers.threads": 1}
    settings |= {"optimizer.warmup_steps": 2, "workers.count": 2, "workers.min_count": 1, "workers.wait_seconds": 60}
    return load_config(TrainConfig, flags=settings)


def train_and_lose(work: Path, lose: str, seconds: float) -> tuple[int, str]:
    """Exit code and output of a training that loses a node, within `seconds` of the loss."""
    write_scenes_parquet(work / "train.parquet", SCENES, seed=1)
    shutil.rmtree(work / "lost", ignore_errors=True)
    run, nodes = None, Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            nodes.add_node(num_cpus=1)
        (work / "train.yaml").write_text(dump_config(make_config(work, "lost", nodes.address)))
        command = [sys.executable, "-m", "fcn_ray", "train", "--config", str(work / "train.yaml")]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + seconds
        while not list_checkpoints(str(work / "lost")):
            if run.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("no checkpoint")
            time.sleep(0.05)
        nodes.remove_node(
            next(n for n in nodes.worker_nodes if holds_a_worker(n) == (lose == "worker")), allow_graceful=False
        )
        text, _ = run.communicate(timeout=seconds)
    finally:
        if run and run.poll() is None:
            run.send_signal(signal.SIGKILL)
        nodes.shutdown()
    return run.returncode, text


def holds_a_worker(node: Any) -> bool:
    """True when a process of Ray Train's workers is a child of the node's raylet."""
    (raylet,) = node.all_processes["raylet"]
    for process in Path("/proc").iterdir():
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet.process.pid and "RayTrainWorker" in (process / "cmdline").read_text():
                return True
        except (OSError, ValueError, IndexError):
            continue
    return False


def main() -> None:
    """Train and lose a node, train and lose none, and look at the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--lose", choices=["worker", "input"], default="worker")
    parser.add_argument(
        "--seconds", type=float, default=600, help="longest wait for the first checkpoint, and for the end"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    code, text = train_and_lose(options.work, options.lose, options.seconds)
    curve = read_curve(str(options.work / "lost"))
    steps, expected = [record["step"] for record in curve], [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
    print(f"exit code {code} after {time.monotonic() - start:.0f} s, steps at the ends of epochs {steps}", flush=True)
    if code or steps != expected:
        raise SystemExit(f"expected code 0 and steps {expected}:\n{text}")
    print("\n".join(line for line in text.splitlines() if line.startswith(("starting", "warning"))))
    restarts = [int(found[1]) for found in re.finditer(r"starting \d workers? at step (\d+)", text)]
    if options.lose == "worker" and not any(step % STEPS for step in restarts):
        raise SystemExit(f"expected it to go on in the middle of an epoch, found {restarts}:\n{text}")
    shutil.rmtree(options.work / "whole", ignore_errors=True)
    train(make_config(options.work, "whole"))
    whole = read_curve(str(options.work / "whole"))
    for lost, kept in zip(curve, whole, strict=True):
        print(f"epoch {lost['epoch']}: loss {lost['loss']:.6f}, undisturbed {kept['loss']:.6f}")
    if any(abs(lost["loss"] / kept["loss"] - 1) > NOISE for lost, kept in zip(curve, whole, strict=True)):
        raise SystemExit("the losses differ")


if __name__ == "__main__":
    main()
