"""What a picture costs that takes its decoder down: seconds and processes, with the limits as they are by default.

python -m tests.benchmarks.poison_cost BUNDLE WORK [--rounds 3]

Each job has 32 good pictures and the null model, and one that kills the decoder (a segmentation fault), hangs it, or
fills its memory; the job beside it has none. BUNDLE is any bundle (small_bundle.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.benchmarks.fault_trial import Trial
from tests.benchmarks.rounds import Outcome, Outcomes, print_table
from tests.inference import poisoning

NONE, BAD = "none", "99.png"


def label(what: str, seed: int, options: argparse.Namespace) -> Outcome:
    """One job: its seconds, how often the picture met a decoder, and its status."""
    folder = options.work / what
    shutil.rmtree(folder, ignore_errors=True)
    with Trial(folder, seed, options.bundle) as trial:
        met = folder / "met"
        trial.environment["PYTHONPATH"] = os.pathsep.join([poisoning.FOLDER, trial.environment["PYTHONPATH"]])
        trial.environment["POISON_LOG"] = str(met)
        if what != NONE:
            trial.write_image(BAD, poisoning.encode_poison(what))
        start = time.monotonic()
        code = trial.end(trial.start())
        seconds = time.monotonic() - start
        rows = [row for file in Path(trial.output).rglob("masks/*.parquet") for row in pq.read_table(file).to_pylist()]
    bad = {row["path"]: row["status"] for row in rows if row["status"] != "ok"}
    if code or len(rows) != 32 + (what != NONE) or bad.keys() != ({BAD} if what != NONE else set()):
        return {"failed": f"code {code}, {len(rows)} rows, bad: {bad}"}
    return {"seconds": seconds, "met": len(met.read_text().split()) if met.exists() else 0, "status": bad.get(BAD)}


def main() -> None:
    """Measure what has no outcome yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    outcomes = Outcomes(options.work / "outcomes.jsonl")
    kinds = [NONE, "kill", "hang", "fill"]
    outcomes.run("poison", kinds, options.rounds, lambda what, number: label(what, number, options))
    base, rows = outcomes.of("poison", NONE), []
    for what in kinds[1:]:
        found = outcomes.of("poison", what)
        more = sorted(found[number]["seconds"] - base[number]["seconds"] for number in found.keys() & base.keys())
        met = max((outcome["met"] for outcome in found.values()), default=0)
        statuses = ", ".join(sorted({outcome["status"] for outcome in found.values()}))
        rows.append([what, statuses, str(met), ", ".join(f"{seconds:.0f}" for seconds in more)])
    print_table(
        "### a picture that", ["does this", "its status", "processes that met it, at most", "seconds more"], rows
    )


if __name__ == "__main__":
    main()
