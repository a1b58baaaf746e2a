"""CPU seconds of each stage of a labelling job, for an image: what the stages cost alone, and what the engine adds.

python -m tests.benchmarks.stages BUNDLE IMAGES WORK [--precision float32]

IMAGES is a folder of Parquet files (camvid.py). The stages run one after the other in one process with one thread of
TensorFlow; "model" is the network alone, "masks" what is made of its logits. The engine is the rest of a
whole job: the CPU seconds of all its processes over all images, less those over the first file only, for each image
more; that leaves out the start.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.config import ChunkConfig, PredictConfig
from fcn_ray.images.geometry import group_by_size, padded_size
from fcn_ray.inference.limits import Limits
from fcn_ray.inference.predictor import Predictor, decode_pixels
from fcn_ray.inference.stages import DecodeImages, ReadChunks, finish_rows
from fcn_ray.tables.columns import Columns
from fcn_ray.tables.commit import commit_chunk
from fcn_ray.tables.inputs import understand_input
from fcn_ray.tables.plan import extend_plan, pending_chunks
from fcn_ray.tables.runs import open_run

SETTINGS = PredictConfig(threads=1)


def run_stages(bundle: Bundle, images: str, work: Path, precision: Any) -> tuple[int, dict[str, float]]:
    """Images, and the CPU seconds of each stage over all of them."""
    spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        spent[name] += time.process_time() - start

    run = open_run(str(work), images, {"model": bundle.digest}, bundle.labels, {})
    with stage("plan"):
        log = extend_plan(run.uri, images, ChunkConfig(), Columns())
    read, decode, limits = (
        ReadChunks(run.uri, understand_input(images), Columns()),
        DecodeImages(10**8),
        Limits(20, 4 * 10**9),
    )
    predictor = Predictor(bundle, SETTINGS, precision)
    network = _compile(bundle, precision)
    for chunk in pending_chunks(log):
        with stage("read"):
            rows = read(pa.Table.from_pylist([asdict(chunk)]))
        with stage("decode"):
            rows = decode(rows, limits.watch)
        with stage("model and masks"):
            done = predictor(rows)
        with stage("model"):
            _apply(network, bundle, decode_pixels(rows, list(range(len(rows)))))
        with stage("encode"):
            done = finish_rows(done, bundle.labels, bundle.digest, run.run_id)
        with stage("put"):
            commit_chunk(run, done)
    return log.rows, dict(spent)


def _compile(bundle: Bundle, precision: Any) -> Any:
    import tensorflow as tf

    model = bundle.build(precision)
    signature = [tf.TensorSpec((None, None, None, 3), tf.float32)]
    network = tf.function(lambda images: model(images, training=False), input_signature=signature)
    network(np.zeros((1, 32, 32, 3), np.float32))
    return network


def _apply(network: Any, bundle: Bundle, images: list[np.ndarray]) -> None:
    """The network alone, in the same batches, on pixels that need no normalisation."""
    sizes = [padded_size(*image.shape[:2], bundle.spec.grid) for image in images]
    for group in group_by_size(sizes, SETTINGS.batch_pixels):
        network(np.zeros((len(group), *sizes[group[0]], 3), np.float32))


def job_cpu(bundle: str, images: str, out: Path, settings: list[str]) -> float:
    """CPU seconds of all processes of a job, those of its Ray included."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "fcn_ray", "segment", images, str(out), "--model", bundle, *settings]
    spent: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        root = psutil.Process(job.pid)
        while job.poll() is None:
            for process in [root, *root.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                spent[process.pid] = times.user + times.system
            time.sleep(0.1)
    if job.returncode:
        raise SystemExit(f"the job ended with {job.returncode}")
    return sum(spent.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    settings = ["--set", f"predict.precision={options.precision}"]
    first = sorted(options.images.glob("*.parquet"))[0]
    few = job_cpu(options.bundle, str(first), options.work / "few", settings)
    many = job_cpu(options.bundle, str(options.images), options.work / "many", settings)
    import pyarrow.parquet as pq

    n_first = pq.read_metadata(first).num_rows
    images, spent = run_stages(
        load_bundle(options.bundle), str(options.images), options.work / "alone", options.precision
    )
    spent["masks"] = spent.pop("model and masks") - spent["model"]
    alone = {name: 1000 * seconds / images for name, seconds in spent.items()}
    job = 1000 * (many - few) / (images - n_first)
    print(f"{images} images, CPU milliseconds for each, {options.precision}")
    for name in ("plan", "read", "decode", "model", "masks", "encode", "put"):
        print(f"{name:<8} {alone[name]:8.2f}")
    print(f"{'engine':<8} {job - sum(alone.values()):8.2f}")
    print(f"{'job':<8} {job:8.2f}, and {few - job * n_first / 1000:.1f} s for its start")


if __name__ == "__main__":
    main()
