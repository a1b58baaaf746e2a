"""A training that loses a node in the middle of an epoch, killed without grace: does it end with the right steps?

python tests/benchmarks/node_loss.py WORK [--lose worker|input]

A cluster on this machine: a head without CPUs and three nodes of one CPU each, two for the workers and one for what
reads their input. `--lose worker` (the default) kills a node that holds a worker, `--lose input` the one that does not.
Then the same training on this machine, where nothing is lost, and the loss of the last epoch of both.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from fcn_ray.datasets.scenes import write_scenes_parquet
from fcn_ray.training.checkpoints import list_checkpoints
from fcn_ray.training.seeing import read_curve

SCENES, BATCH, EPOCHS = 80, 4, 2


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


def start(work: Path, out: Path, address: str | None) -> subprocess.Popen[str]:
    """The training, on the cluster at `address` or on this machine."""
    settings = ["model.width=0.05", "model.fc_channels=8", "augment.crop=[64,64]", "optimizer.learning_rate=0.05"]
    settings += [f"batch_size={BATCH}", f"epochs={EPOCHS}", "workers.count=2", "workers.min_count=1"]
    settings += ["workers.threads=1", "workers.wait_seconds=60", "checkpoint_steps=5"]
    settings += [f"address={address}"] if address else []
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--data", str(work / "train.parquet"), "--out", str(out)]
    flags += [part for setting in settings for part in ("--set", setting)]
    return subprocess.Popen([sys.executable, "-m", "fcn_ray", "train", *flags])


def main() -> None:
    """Start the nodes and the training, kill a node, and look at the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--lose", choices=["worker", "input"], default="worker")
    options = parser.parse_args()
    write_scenes_parquet(options.work / "train.parquet", SCENES, seed=1)
    out = options.work / "out"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        nodes.add_node(num_cpus=1)
    run = start(options.work, out, nodes.address)
    try:
        while not list_checkpoints(str(out)):
            if run.poll() is not None:
                raise SystemExit("the training ended before it had a checkpoint")
            time.sleep(0.05)
        lost = next(n for n in nodes.worker_nodes if holds_a_worker(n) == (options.lose == "worker"))
        nodes.remove_node(lost, allow_graceful=False)
        print(f"killed a node that held {'a worker' if options.lose == 'worker' else 'none'}", flush=True)
        code = run.wait(timeout=600)
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
        nodes.shutdown()
    curve = read_curve(str(out))
    steps = [record["step"] for record in curve]
    expected = [SCENES // BATCH * (epoch + 1) for epoch in range(EPOCHS)]
    print(f"exit code {code}, steps at the ends of epochs {steps}, expected {expected}", flush=True)
    if code or steps != expected:
        raise SystemExit(1)
    whole = options.work / "whole"
    if start(options.work, whole, None).wait():
        raise SystemExit("the training that loses nothing failed")
    print(f"loss of the last epoch {curve[-1]['loss']:.4f}, undisturbed {read_curve(str(whole))[-1]['loss']:.4f}")


if __name__ == "__main__":
    main()
