"""What the guarantees cost: our job beside Ray's write_parquet behind the same stages, with the null model.

python -m tests.benchmarks.guarantees BUNDLE IMAGES WORK [--rounds 5]

IMAGES is a folder of Parquet files (camvid.py). Ours: plan, guarded decoding, one durable put a chunk, receipts,
manifest. Theirs: the same reading, decoding, null model and PNG encoding, then `Dataset.write_parquet`, without any
of that. Interleaved rounds, each a process of its own, timed from its start to its end: when the masks of a part are on
the disk tells nothing, for Ray writes when the other stages leave it a CPU. Both start the same Ray.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def ours(bundle: str, images: str, out: str) -> int:
    """The job as `fcn-ray segment` runs it: how many images."""
    from fcn_ray.config import SegmentConfig
    from fcn_ray.config_text import load_config
    from fcn_ray.inference import execution, job
    from tests.benchmarks.null_model import NullPredictor

    execution.Predictor = NullPredictor  # type: ignore[assignment,misc]
    return job.segment(load_config(SegmentConfig, flags={"input": images, "output": out, "model": bundle})).images


def theirs(bundle: str, images: str, out: str) -> int:
    """The same stages, and Ray's writer."""
    import pyarrow.parquet as pq
    import ray

    from fcn_ray import cluster
    from fcn_ray.bundle import load_bundle
    from fcn_ray.config import ChunkConfig
    from fcn_ray.inference.stages import DecodeImages, ReadChunks, finish_rows
    from fcn_ray.tables.columns import Columns
    from fcn_ray.tables.inputs import understand_input
    from fcn_ray.tables.plan import extend_plan, pending_chunks
    from tests.benchmarks.null_model import NullPredictor

    loaded = load_bundle(bundle)
    finish = partial(finish_rows, labels=loaded.labels, model_digest="model", run_id="run")
    log = extend_plan(f"{out}/plan", images, ChunkConfig(), Columns())
    read, decode = ReadChunks(f"{out}/plan", understand_input(images), Columns()), DecodeImages(100_000_000)
    cluster.connect(cpus=2)
    options = ray.data.DataContext.get_current()
    options.target_max_block_size = None
    options.enable_progress_bars = False
    options.execution_options.preserve_order = False
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    chunks = [asdict(chunk) for chunk in pending_chunks(log)]
    blocks = ray.data.from_items(chunks, override_num_blocks=len(chunks))
    decoded = blocks.map_batches(lambda table: decode(read(table)), num_cpus=0.5, **whole)
    actors = ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=2)
    predicted = decoded.map_batches(
        NullPredictor, fn_constructor_kwargs={"bundle": loaded}, compute=actors, num_cpus=1, **whole
    )
    encoded = predicted.map_batches(finish, num_cpus=0.5, **whole)
    encoded.write_parquet(f"{out}/masks")
    return sum(pq.read_metadata(file).num_rows for file in Path(f"{out}/masks").iterdir())


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One contender in a process of its own."""
    out = options.work / name
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, options.bundle, options.images, str(out), "--contender", name]
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    seconds = time.monotonic() - start
    images = int(result.stdout.strip().splitlines()[-1])
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds}


def main() -> None:
    """Rounds, a line for each; the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images")
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contender", choices=["ours", "theirs"])
    options = parser.parse_args()
    if options.contender:
        contender = ours if options.contender == "ours" else theirs
        print(contender(options.bundle, options.images, str(options.work)))
        return
    ratios = []
    for number in range(options.rounds):
        order = ["ours", "theirs"] if number % 2 else ["theirs", "ours"]
        found = {name: run(name, options) for name in order}
        ratios.append(found["ours"]["images_per_second"] / found["theirs"]["images_per_second"])
        print(number + 1, {name: {k: round(v, 1) for k, v in one.items()} for name, one in found.items()}, flush=True)
    spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
    print(f"images/s, ours over theirs: median {statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
