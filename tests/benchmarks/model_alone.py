"""The network alone: images per second of uint8 batches in memory -> uint8 class ids, in ours and in other runtimes.

python -m tests.benchmarks.model_alone BUNDLE IMAGES WORK [--rounds 5] [--batches 1 8] [--contenders ours predict ...]

IMAGES is a folder of Parquet files (camvid.py). Each contender is a process that stays, with its network loaded and
warm, and is asked in turn, A B C A B C, for a few batches; meanwhile the others sleep. The masks of all are compared
with ours in float32. Ours tallies classes and confidences as well. ONNX Runtime and OpenVINO get the exported network
with the argmax put behind it; OpenVINO is told its precision, for it would take bfloat16 by itself where it can.
TensorFlow computes by oneDNN but where a title says otherwise: on CPUs without AVX-512, where it is off when nobody
asks, that is slower for one image and faster for more. A contender that does not start, as OpenVINO in bfloat16 on a
CPU where it has none, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.benchmarks.peers.environments import python_of
from tests.benchmarks.peers.onnx_model import load_session, write_onnx
from tests.benchmarks.peers.shared import LabelFunction, Task, build_label_model, decode, load_label_function
from tests.benchmarks.rounds import Outcome, Outcomes, median, print_table, ratio

SECONDS = 1.0
"""Of work for one measurement, about."""

ONNX = "labels.onnx"


def load_ours(task: Task, _: Path) -> LabelFunction:
    from fcn_ray.bundle import load_bundle
    from fcn_ray.images.geometry import pad_batch, padded_size
    from fcn_ray.inference.network import compile_network

    network = compile_network(load_bundle(task.bundle), 0, task.precision)

    def label(images: np.ndarray) -> np.ndarray:
        count, height, width, _ = images.shape
        padded = pad_batch(images, *padded_size(height, width, network.grid))
        sizes = np.full((count, 2), (height, width), np.int32)
        cores = np.full((count, 4), (0, 0, height, width), np.int32)
        masks, pixels, confidence = network.predict(padded, sizes, cores)
        np.asarray(pixels), np.asarray(confidence)
        return np.asarray(masks)[:, :height, :width]

    return label


def load_predict(task: Task, _: Path) -> LabelFunction:
    model = _raw_model(task)
    return lambda images: model.predict(images, verbose=0).argmax(-1).astype(np.uint8)


def load_call(task: Task, _: Path) -> LabelFunction:
    model = _raw_model(task)
    return lambda images: np.asarray(model(images, training=False)).argmax(-1).astype(np.uint8)


def load_fused(task: Task, _: Path) -> LabelFunction:
    return load_label_function(task)


def load_frozen(task: Task, _: Path) -> LabelFunction:
    """The fused function with its weights as constants, which lets oneDNN keep them in its own layout."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = build_label_model(task)
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    signature = tf.TensorSpec((None, None, None, 3), tf.uint8)
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(signature))
    return lambda images: frozen(tf.constant(images))[0].numpy()


def load_onnxruntime(_: Task, work: Path) -> LabelFunction:
    return load_session(work / ONNX)


def load_openvino(task: Task, work: Path) -> LabelFunction:
    import openvino

    precision = {"float32": "f32", "bfloat16": "bf16"}[task.precision]
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SystemExit("OpenVINO has no bfloat16 on this CPU")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    model = core.compile_model(str(work / ONNX), "CPU", settings)
    return lambda images: model(images)[0].copy()


CONTENDERS: dict[str, tuple[Callable[[Task, Path], LabelFunction], str, str, str]] = {
    "ours": (load_ours, "float32", "project", "fcn_ray"),
    "predict": (load_predict, "float32", "project", "model.predict, argmax"),
    "predict-plain": (load_predict, "float32", "project", "the same without oneDNN"),
    "call": (load_call, "float32", "project", "model(x), argmax"),
    "fused": (load_fused, "float32", "project", "tf.function with argmax"),
    "fused-plain": (load_fused, "float32", "project", "the same without oneDNN"),
    "frozen": (load_frozen, "float32", "project", "tf.function, weights as constants"),
    "onnxruntime": (load_onnxruntime, "float32", "project", "ONNX Runtime"),
    "openvino": (load_openvino, "float32", "openvino", "OpenVINO"),
    "ours-bfloat16": (load_ours, "bfloat16", "project", "fcn_ray, bfloat16"),
    "fused-bfloat16": (load_fused, "bfloat16", "project", "tf.function with argmax, bfloat16"),
    "openvino-bfloat16": (load_openvino, "bfloat16", "openvino", "OpenVINO, bfloat16"),
}
"""Name -> what loads it, precision, environment, title."""


def _raw_model(task: Task) -> Any:
    """Images in, logits out, one Keras model."""
    import keras

    from fcn_ray.bundle import load_bundle
    from fcn_ray.models.preprocessing import Normalise

    bundle = load_bundle(task.bundle)
    images = keras.Input((None, None, 3), dtype="uint8")
    return keras.Model(images, bundle.build(task.precision)(Normalise(bundle.preprocessing)(images)))


def serve(name: str, bundle: str, work: Path) -> None:
    """Answer each line, a size of batch, with the images per second in that size."""
    load, precision, _, _ = CONTENDERS[name]
    images = np.load(work / "images.npy")
    label = load(Task(bundle, work, work, "network", precision), work)
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        size = int(line)
        batch = images[:size]
        mask = label(batch)
        start, cpu = time.perf_counter(), time.process_time()
        count = 0
        while (spent := time.perf_counter() - start) < SECONDS:
            label(batch)
            count += size
        np.save(work / f"mask-{name}-{size}.npy", mask)
        found = {"images_per_second": count / spent, "cpu_per_image": (time.process_time() - cpu) / count}
        print(json.dumps(found), flush=True)


class Server:
    """A contender's process; `lost` says why it has not started."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        python = python_of(CONTENDERS[name][2], options.work / "environments")
        command = [python, "-m", "tests.benchmarks.model_alone", options.bundle, options.images, options.work]
        self._log = options.work / f"model-{name}.err"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*map(str, command), "--serve", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | ({"TF_ENABLE_ONEDNN_OPTS": "0"} if name.endswith("-plain") else {}),
            )
        self.lost = self._answer().get("failed")

    def ask(self, size: int) -> Outcome:
        """One measurement."""
        assert self._process.stdin
        self._process.stdin.write(f"{size}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Outcome:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: Outcome = json.loads(line)
                return answer
        code = self._process.wait()
        return {"failed": (self._log.read_text().splitlines() or [f"exit code {code}"])[-1]}


def main() -> None:
    """Measure what has no outcome yet; print a table for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--serve", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.bundle, options.work)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(sorted(options.images.glob("*.parquet"))[0], columns=["image"])[: max(options.batches)]
    np.save(options.work / "images.npy", np.stack([decode(data.as_py()) for data in rows["image"]]))
    write_onnx(options.bundle, options.work / ONNX)
    outcomes = Outcomes(options.work / "outcomes.jsonl")
    servers = {name: Server(name, options) for name in options.contenders}
    for name in [name for name in servers if servers[name].lost]:
        print(f"{name} is left out: {servers.pop(name).lost}")
    for size in options.batches:
        outcomes.run(f"model-{size}", servers, options.rounds, lambda name, _, size=size: servers[name].ask(size))
    for server in servers.values():
        server.close()
    for size in options.batches:
        print_batch(size, outcomes, options.work)


def print_batch(size: int, outcomes: Outcomes, work: Path) -> None:
    """The table for one size of batch."""
    case = f"model-{size}"
    expected = np.load(work / f"mask-ours-{size}.npy")
    rows = []
    for name, (_, _, _, title) in CONTENDERS.items():
        if found := outcomes.of(case, name):
            equal = 100 * (np.load(work / f"mask-{name}-{size}.npy") == expected).mean()
            over = [ratio(outcomes.of(case, us), found, "images_per_second") for us in ("ours", "ours-bfloat16")]
            cpu = median(found, "cpu_per_image", 1, 1000), ratio(outcomes.of(case, "ours"), found, "cpu_per_image")
            rows.append([title, median(found, "images_per_second", 2), *over, *cpu, f"{equal:.4f}"])
    head = ["contender", "images/s", "ours / it", "ours, bfloat16 / it", "CPU ms/image", "ours / it", "equal pixels, %"]
    print_table(f"### the network alone, batch of {size}", head, rows)


if __name__ == "__main__":
    main()
