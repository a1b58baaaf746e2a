"""What a labelling job loses to faults: kinds of fault, times seeds; rows lost, doubled and torn are counted.

python -m tests.benchmarks.faults BUNDLE WORK [--seeds 20] [--first-seed 0] [--kinds NAME ...] [--at-once 2]

Every trial is a whole job, disturbed once at a random moment, and run again until it is complete; the network is the
null model. Trials run side by side, each in a process of its own, since most of one is waiting for Ray to start. One
whose fault found nobody (the job was over, the step was not reached) is not "struck". Then every version of every input
must have one row with the mask that its picture gives, and the audit must find nothing. Outcomes are kept in
WORK/outcomes.jsonl: a run that is ended goes on. Some kinds need root (a file system in memory that fills up). BUNDLE
is any bundle (small_bundle.py); the kinds are in fault_kinds.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.benchmarks.fault_kinds import KINDS
from tests.benchmarks.fault_trial import Trial


def run_trial(kind: str, seed: int, bundle: str, work: Path) -> dict[str, Any]:
    """One trial: what was lost, and how it went."""
    folder = work / f"{kind.replace(' ', '-')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    with Trial(folder, seed, bundle) as trial:
        try:
            KINDS[kind](trial)
            found = trial.complete()
        except Exception:
            found = {"failed": traceback.format_exc()[-2000:]}
    clean = not any(found.get(name) for name in ("lost", "doubled", "torn", "findings", "failed"))
    if clean:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - start, 1)
    return {"kind": kind, "seed": seed, "struck": trial.struck, "clean": clean, "seconds": seconds} | {
        "codes": trial.codes,
        **found,
    }


def print_table(outcomes: list[dict[str, Any]]) -> None:
    """One line for each kind."""
    kinds = defaultdict(list)
    for outcome in outcomes:
        kinds[outcome["kind"]].append(outcome)
    print("| fault | trials | struck | clean | rows lost | doubled | torn | audit findings | codes of the jobs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind, trials in kinds.items():
        sums = [sum(trial.get(name, 0) for trial in trials) for name in ("lost", "doubled", "torn", "findings")]
        codes = sorted({str(code) for trial in trials for code in trial["codes"]})
        counts = [sum(trial[name] for trial in trials) for name in ("struck", "clean")]
        cells = [kind, len(trials), *counts, *sums, ", ".join(codes)]
        print("| " + " | ".join(map(str, cells)) + " |")


def run_trials(todo: list[tuple[str, int]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Outcomes as they come."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.at_once, mp_context=spawn, max_tasks_per_child=1) as pool:
        trials = [pool.submit(run_trial, kind, seed, options.bundle, options.work) for kind, seed in todo]
        yield from (trial.result() for trial in as_completed(trials))


def main() -> None:
    """Run what has no outcome yet, seed by seed over all kinds; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="trials; each starts a Ray")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "outcomes.jsonl"
    outcomes = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(outcome["kind"], outcome["seed"]) for outcome in outcomes}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    todo = [(kind, seed) for seed in seeds for kind in options.kinds if (kind, seed) not in done]
    for outcome in run_trials(todo, options):
        outcomes.append(outcome)
        with file.open("a") as log:
            log.write(json.dumps(outcome) + "\n")
        what = "clean" if outcome["clean"] else outcome
        print(f"{outcome['kind']} {outcome['seed']}: {what} {outcome['seconds']} s", flush=True)
    print_table(sorted(outcomes, key=lambda outcome: list(KINDS).index(outcome["kind"])))


if __name__ == "__main__":
    main()
