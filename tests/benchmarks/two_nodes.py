"""Images a second of one node of one CPU, and of two: each a raylet of its own on this machine, one thread an actor.

python -m tests.benchmarks.two_nodes BUNDLE IMAGES WORK [--rounds 5]

The head has no CPU. The driver and Ray's own processes have whatever cores the nodes leave. Nodes are as a
machine with one core and 4 GB is when it is started as the README says: idle processes are kept for a minute, and the
object store has 30 % of the memory, where `ray.cluster_utils` would give it 150 MB, four chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

from fcn_ray.cluster import NODE_ENVIRONMENT
from tests.benchmarks.rounds import Outcome, Outcomes, median, print_table, ratio

JOB = """
import json, sys
from fcn_ray import SegmentConfig, load_config, segment
flags = {"model": sys.argv[1], "input": sys.argv[2], "output": sys.argv[3], "address": sys.argv[4]}
flags |= {"predict.actors": int(sys.argv[5]), "predict.threads": 1, "predict.cpus": 0.5, "decode_cpus": 0.25}
report = segment(load_config(SegmentConfig, flags=flags))
print(json.dumps({"images": report.images, "images_per_second": report.images_per_second, "seconds": report.seconds}))
"""

STORE = 1_200_000_000
"""Bytes of a node's object store."""


def label(nodes: int, options: argparse.Namespace) -> Outcome:
    """One job on a new cluster."""
    out = options.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        places = [str(options.bundle), str(options.images), str(out), cluster.address, str(nodes)]
        job = subprocess.run([sys.executable, "-c", JOB, *places], capture_output=True, text=True, check=False)
    finally:
        cluster.shutdown()
    if job.returncode:
        return {"failed": job.stderr[-2000:], "code": job.returncode}
    found: Outcome = json.loads(job.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure what has no outcome yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.update({"RAY_AUTH_MODE": "disabled", **NODE_ENVIRONMENT})
    outcomes = Outcomes(options.work / "outcomes.jsonl")
    outcomes.run("nodes", ["1", "2"], options.rounds, lambda nodes, _: label(int(nodes), options))
    one, two = outcomes.of("nodes", "1"), outcomes.of("nodes", "2")
    cells = [median(one, "images_per_second", 2), median(two, "images_per_second", 2)]
    rows = [[median(one, "images", 0), *cells, ratio(two, one, "images_per_second")]]
    print_table("### one node and two", ["images", "one node, images/s", "two", "two / one"], rows)


if __name__ == "__main__":
    main()
