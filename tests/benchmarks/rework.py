"""What is done twice when a labelling job is killed in the middle, or has another beside it: chunks predicted twice.

python -m tests.benchmarks.rework BUNDLE WORK [--seeds 10] [--pause 0.3]

Each trial: 32 chunks of one picture, the null model with a pause of that many seconds for each; when half of the chunks
are stored (one more or less) all processes are killed, or, in every second trial, the driver alone, which has two
actors there. The job runs again; then once more, when there is nothing to do. After that two jobs that start at the
same moment, over an output of their own. BUNDLE is any bundle (small_bundle.py).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tests.benchmarks.fault_trial import Trial, kill_session
from tests.benchmarks.null_model import LOG, PAUSE


def measure(trial: Trial, actors: int) -> tuple[int, int, int]:
    """Chunks stored when the job was killed, chunks predicted twice, and puts of a job that has nothing to do."""
    trial.settings = ["chunk.rows=1", f"predict.actors={actors}"]
    log = trial.root / "predicted.txt"
    trial.environment[LOG] = str(log)
    job = trial.start()
    if not trial.wait_for(lambda: trial.count_chunks() >= 16, job):
        raise SystemExit(f"the job ended before it was killed; see {trial.root}")
    if actors == 1:
        trial.kill_all(job)
    else:  # what the driver leaves ends by itself, beside the next job
        job.kill()
        job.wait(30)
    stored = trial.count_chunks()
    if trial.end(trial.start()) != 0 or trial.count_chunks() != 32:
        raise SystemExit(f"the job is not complete; see {trial.root}")
    predicted = log.read_text().split()
    files = _files(trial)
    if trial.end(trial.start()) != 0:
        raise SystemExit(f"a finished job failed; see {trial.root}")
    kill_session(job.pid)
    return stored, len(predicted) - len(set(predicted)), len(_files(trial) - files)


def measure_two(trial: Trial) -> int:
    """Chunks predicted by both of two jobs at once."""
    trial.settings = ["chunk.rows=1"]
    trial.output = str(trial.root / "shared")
    log = trial.root / "shared.txt"
    trial.environment[LOG] = str(log)
    jobs = [trial.start(), trial.start()]
    if [trial.end(job) for job in jobs] != [0, 0] or trial.count_chunks() != 32:
        raise SystemExit(f"the jobs are not complete; see {trial.root}")
    predicted = log.read_text().split()
    return len(predicted) - len(set(predicted))


def _files(trial: Trial) -> set[tuple[str, int]]:
    """What the run holds but its status and lock, which every job writes."""
    signs = {"status.json", "lock.json"}
    files = [path for path in Path(trial.output).rglob("*") if path.is_file() and path.name not in signs]
    return {(str(path), path.stat().st_mtime_ns) for path in files}


def main() -> None:
    """A line for each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pause", default="0.3")
    options = parser.parse_args()
    for seed in range(options.seeds):
        folder = options.work / str(seed)
        shutil.rmtree(folder, ignore_errors=True)
        actors = 1 + seed % 2
        with Trial(folder, seed, options.bundle) as trial:
            trial.environment[PAUSE] = options.pause
            stored, twice, puts = measure(trial, actors)
            both = measure_two(trial)
        print(
            f"seed {seed}, {actors} actors: killed at {stored} of 32 chunks, {twice} predicted twice; "
            f"puts afterwards: {puts}; of two jobs at once, {both} predicted by both",
            flush=True,
        )


if __name__ == "__main__":
    main()
