"""The protocol as a whole: jobs that run at once, are killed without warning and are started again."""

import random
import subprocess
import sys
from pathlib import Path

from fcn_ray.tables.audit import audit
from tests.tables.making import finished_run, write_images, write_table

ROOT = Path(__file__).parents[2]

_TWO_JOBS = """
import os, signal, sys, time
from pathlib import Path
from tests.tables.making import finished_run

for line in sys.stdin:  # one process that has imported everything, so that each attempt is only a fork
    jobs = []
    for rows in (1, 2):
        job = os.fork()
        if not job:
            finished_run(Path(sys.argv[1]), rows)
            os._exit(0)
        jobs.append(job)
    time.sleep(float(line))
    for job in jobs:
        os.kill(job, signal.SIGKILL)
        os.waitpid(job, 0)
    print("killed", flush=True)
"""


def test_killed_jobs_leave_nothing_to_mend(tmp_path: Path) -> None:
    """Two jobs at a time with different chunk sizes, killed at a random moment, while the input grows."""
    moments, output = random.Random(3), tmp_path / "out"
    command = [sys.executable, "-c", _TWO_JOBS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as jobs:
        assert jobs.stdin is not None
        assert jobs.stdout is not None
        for attempt in range(8):
            write_images(tmp_path / "in", *(f"{attempt}{i}.png" for i in range(4)))
            write_table(tmp_path / "in" / f"{attempt}.parquet", 3)
            print(moments.uniform(0.01, 0.1), file=jobs.stdin, flush=True)
            assert jobs.stdout.readline() == "killed\n"
            if output.exists() and any(output.rglob("*.parquet")):
                assert audit(str(output)).findings == []
        jobs.stdin.close()
    finished_run(tmp_path)
    report = audit(str(output))
    assert (report.findings, report.unfinished) == ([], [])
    assert report.statuses == {"ok": 8 * (4 + 3)}
