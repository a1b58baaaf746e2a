"""A training killed at random steps and resumed each time, beside one that nothing disturbed: are the weights equal?

python tests/benchmarks/kill_resume.py WORK [--kills 20] [--workers 2]

Each kill is a SIGKILL of driver, raylet and workers together, a random number of steps after the resume. After every
other kill a byte of the newest checkpoint is flipped. Drawn streets, a tiny network, CPU, deterministic operations.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fcn_ray.datasets.scenes import write_scenes_parquet
from fcn_ray.training.checkpoints import STATE, Arrays, find_newest, list_checkpoints, load_arrays

MOST_STEPS = 6
"""Between a resume and the next kill."""


def command(work: Path, out: Path, kills: int, workers: int) -> list[str]:
    """One training: `kills` times MOST_STEPS / 2 steps on average, and some to spare."""
    settings = ["model.width=0.05", "model.fc_channels=8", "augment.crop=[64,64]", "optimizer.warmup_steps=2"]
    settings += ["optimizer.learning_rate=0.05", "workers.threads=1", "deterministic=true", "batch_size=4"]
    settings += ["log_steps=1", "checkpoint_steps=2", f"epochs={1 + kills * MOST_STEPS // 8}"]
    flags = ["--data", str(work / "train.parquet"), "--val", str(work / "val.parquet"), "--out", str(out)]
    flags += ["--workers", str(workers), *(part for setting in settings for part in ("--set", setting))]
    return [sys.executable, "-m", "fcn_ray", "train", *flags]


def run_until(line: list[str], steps: int | None) -> int | None:
    """Run; kill everything after `steps` steps. The last step seen; None when the training came to its end."""
    run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    assert run.stdout is not None
    seen, text = 0, []
    for printed in run.stdout:
        text.append(printed)
        if match := re.match(r"step (\d+)/", printed):
            seen += 1
            if seen == steps:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                return int(match[1])
    if run.wait():
        raise SystemExit("".join(text))
    return None


def flip_newest(out: Path) -> int | None:
    """Flip a byte in the state of the newest checkpoint, if there is an older one; its step."""
    found = list_checkpoints(str(out))
    if len(found) < 2:
        return None
    file = Path(found[-1].folder) / STATE
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return found[-1].step


def final_state(out: Path) -> Arrays:
    """Every variable at the end."""
    newest = find_newest(str(out))
    arrays = load_arrays(newest) if newest else None
    if arrays is None:
        raise SystemExit(f"{out} has no checkpoint")
    return arrays


def main() -> None:
    """Train twice, once undisturbed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for name, count, seed in (("train", 32, 1), ("val", 8, 2)):
        write_scenes_parquet(options.work / f"{name}.parquet", count, seed=seed)
    straight, killed = options.work / "straight", options.work / "killed"
    for out in (straight, killed):
        shutil.rmtree(out, ignore_errors=True)
    run_until(command(options.work, straight, options.kills, options.workers), None)
    rng = random.Random(1)
    line = command(options.work, killed, options.kills, options.workers)
    kills = flips = 0
    start = time.monotonic()
    while (step := run_until(line, rng.randint(1, MOST_STEPS) if kills < options.kills else None)) is not None:
        kills += 1
        flipped = flip_newest(killed) if kills % 2 == 0 else None
        flips += flipped is not None
        print(
            f"kill {kills} at step {step}" + (f", checkpoint of step {flipped} damaged" if flipped else ""), flush=True
        )
        line = [*command(options.work, killed, options.kills, options.workers), "--resume"]
    before, after = final_state(straight), final_state(killed)
    equal = sum(np.array_equal(before[name], after[name]) for name in before)
    print(f"{kills} kills, {flips} damaged checkpoints, {(time.monotonic() - start) / 60:.1f} minutes")
    print(f"{equal} of {len(before)} variables bit-equal to the undisturbed run's")
    if equal != len(before) or kills < options.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
