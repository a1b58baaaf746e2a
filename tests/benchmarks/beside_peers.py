"""fcn_ray's labelling engine beside its peers: the same images, the same network, the same machine, the same hour.

python -m tests.benchmarks.beside_peers BUNDLE IMAGES WORK [--rounds 3] [--files 8] [--cases network null ...]

IMAGES is a folder of Parquet files (camvid.py), BUNDLE one of small_bundle.py. Contenders are in peers/, each a process
and a virtual environment of its own. After a warm-up of a few images the rounds are interleaved, A B C A B C. Ratios
are ours over theirs, median of the rounds with the smallest and largest; ours in float32 and in bfloat16, which of the
peers the hand-tuned loop has:

- images/s: between the first and the last finished batch (ours: committed chunk), all starts left out
- total: from the command to its end, starts included; first result: from the command to the first finished batch
- CPU: of all processes, between the first and the last finished batch, for each image
- memory: largest sum of all processes, each second, what they share counted once; what Ray spilled to disk is told
- equal pixels: with our masks in float32, of the first round

Outcomes are kept in WORK/outcomes.jsonl: a benchmark that is ended goes on, and a failure is tried again. Other code
and other bundles need another WORK.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from fcn_ray.bundle import load_bundle
from tests.benchmarks.mixed_sizes import padded_megapixels, write_mixed
from tests.benchmarks.peers import processes
from tests.benchmarks.peers.agreement import equal_pixels
from tests.benchmarks.peers.environments import python_of
from tests.benchmarks.peers.onnx_model import write_onnx
from tests.benchmarks.peers.shared import START
from tests.benchmarks.rounds import Outcome, Outcomes, median, print_table, ratio

ROOT = Path(__file__).parents[2]
OURS, OURS_BFLOAT16, ONNX = "ours", "ours-bfloat16", "labels.onnx"
WARM_UP = 16
"""Images."""


@dataclass(frozen=True)
class Contender:
    """A module of peers/, and the environment that it runs in."""

    module: str
    environment: str
    title: str
    onnx: bool = False
    """Whether it takes the network as an ONNX file."""
    precision: str = "float32"


CONTENDERS = {
    OURS: Contender("ours", "project", "fcn_ray"),
    OURS_BFLOAT16: Contender("ours", "project", "fcn_ray, bfloat16", precision="bfloat16"),
    "plain-keras": Contender("plain_keras", "project", "plain Keras loop"),
    "tf-data": Contender("tf_data", "project", "tf.data, model.predict"),
    "hand-tuned": Contender("hand_tuned", "codecs", "hand-tuned single process"),
    "hand-tuned-bfloat16": Contender("hand_tuned", "codecs", "hand-tuned, bfloat16", precision="bfloat16"),
    "hand-tuned-onnx": Contender("hand_tuned", "codecs", "hand-tuned, ONNX Runtime", onnx=True),
    "naive-ray-data": Contender("naive_ray_data", "project", "Ray Data as documented"),
    "daft": Contender("daft_udf", "daft", "Daft"),
    "pyspark": Contender("pyspark_udf", "pyspark", "PySpark"),
}

CASES = {
    "network": list(CONTENDERS),
    "null": [name for name, found in CONTENDERS.items() if found.precision == "float32" and not found.onnx],
    "mixed": [OURS, OURS_BFLOAT16, "plain-keras", "hand-tuned", "hand-tuned-bfloat16"],
}
"""The network, the null model, and the network on images of forty sizes."""


def label(name: str, bundle: str, images: Path, out: Path, options: list[str], work: Path) -> Outcome:
    """One run of one contender; a failure is an outcome, too."""
    contender = CONTENDERS[name]
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    module = f"tests.benchmarks.peers.{contender.module}"
    command = [
        python_of(contender.environment, work / "environments"),
        "-W",
        "ignore",
        "-m",
        module,
        bundle,
        images,
        out,
    ]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {START: str(time.monotonic()), "PYTHONPATH": paths}
    options = [*options, "--precision", contender.precision]
    if contender.onnx:
        options = [*options, "--onnx", str(work / ONNX)]
    log = out.parent / f"{out.name}-log"
    usage = processes.run([*map(str, command), *options], environment, ROOT, log)
    if usage.code:
        return {"failed": Path(f"{log}.err").read_text(errors="replace")[-2000:], "code": usage.code}
    found: Outcome = json.loads(Path(f"{log}.out").read_text().splitlines()[-1])
    busy = usage.cpu_between(found.pop("first_at"), found.pop("last_at"))
    steady = found.pop("steady_images")
    found |= {"cpu_per_image": busy / steady} if steady else {}
    used = {name: getattr(usage, name) for name in ("seconds", "cpu_seconds", "peak_bytes", "spilled_bytes")}
    return found | used


def prepare(images: Path, work: Path, files: int) -> dict[str, Path]:
    """The inputs of the cases below `work`, made when they are not there: warm-up, fixed and mixed."""
    source = sorted(images.glob("*.parquet"))
    if len(source) < files:
        raise SystemExit(f"{images} has {len(source)} Parquet files, --files asks for {files}")
    inputs = {name: work / name for name in ("images-warm-up", f"images-{files}", f"images-{files}-mixed")}
    warm_up, fixed, mixed = inputs.values()
    if not mixed.exists():
        shutil.rmtree(fixed, ignore_errors=True)
        for folder in (warm_up, fixed):
            folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.read_table(source[0])[:WARM_UP], warm_up / "part.parquet", compression="none")
        for path in source[:files]:
            shutil.copy(path, fixed)
        write_mixed(fixed, Path(f"{mixed}-tmp"))
        Path(f"{mixed}-tmp").rename(mixed)
    return {"warm-up": warm_up, "network": fixed, "null": fixed, "mixed": mixed}


def measure_case(case: str, inputs: dict[str, Path], outcomes: Outcomes, options: argparse.Namespace) -> None:
    """All rounds of a case; the masks of the first round are compared."""
    flags = ["--model", "null"] if case == "null" else []
    kept = options.work / "masks" / f"{case}-{options.files}"
    contenders = [name for name in CASES.get(case, CONTENDERS) if name in options.contenders]

    def measure(name: str, number: int) -> Outcome:
        out = kept / name if number == 0 else kept / "later" / name
        found = label(name, options.bundle, inputs[case], out, flags, options.work)
        if number == 0 and "failed" not in found:
            found["equal"] = equal_pixels(out, kept / OURS)
        return found

    if case == "warm-up":
        outcomes.run(case, contenders, 1, measure)
    else:
        outcomes.run(f"{case}-{options.files}", contenders, options.rounds, measure)


def print_case(case: str, outcomes: Outcomes, options: argparse.Namespace) -> None:
    """The table of a case: medians, and ratios of ours in both precisions over each."""
    key = f"{case}-{options.files}"
    ours = {"ours / it": outcomes.of(key, OURS), "ours, bfloat16 / it": outcomes.of(key, OURS_BFLOAT16)}
    ours = {title: found for title, found in ours.items() if found}
    over = list(ours)
    head = ["contender", "images/s", *over, "total, s", *over, "first result, s", "CPU ms/image", *over, "peak MiB"]
    rows = []
    for name in CASES[case]:
        theirs = outcomes.of(key, name)
        if not theirs:
            continue
        ratios = {
            value: [ratio(found, theirs, value) for found in ours.values()]
            for value in ("images_per_second", "seconds", "cpu_per_image")
        }
        rows.append(
            [
                CONTENDERS[name].title,
                median(theirs, "images_per_second", 2),
                *ratios["images_per_second"],
                median(theirs, "seconds"),
                *ratios["seconds"],
                median(theirs, "first_seconds"),
                median(theirs, "cpu_per_image", 2, 1000),
                *ratios["cpu_per_image"],
                median(theirs, "peak_bytes", 0, 2**-20),
                median(theirs, "equal", 4, 100),
            ]
        )
    every = [outcome for found in ours.values() for outcome in found.values()]
    images, rounds = max((outcome["images"] for outcome in every), default=0), max(map(len, ours.values()), default=0)
    print_table(f"### {case}: {images:,} images, {rounds} rounds", [*head, "equal pixels, %"], rows)
    spilled = max((outcome.get("spilled_bytes", 0) for outcome in every), default=0)
    print(f"\nOurs had {spilled / 2**20:,.0f} MiB spilled at most.")


def print_mixed(inputs: dict[str, Path], outcomes: Outcomes, options: argparse.Namespace) -> None:
    """Padded megapixels a second: those of forty sizes over those of one."""
    grid = load_bundle(options.bundle).spec.grid
    mixed, fixed = (padded_megapixels(inputs[case], grid) for case in ("mixed", "network"))
    rows = []
    for name in CASES["mixed"]:
        found = {}
        for case, size in (("mixed", mixed), ("network", fixed)):
            found[case] = {
                number: {"rate": (outcome["images_per_second"] or 0) * size}
                for number, outcome in outcomes.of(f"{case}-{options.files}", name).items()
            }
        cells = [median(found[case], "rate", 2) for case in ("mixed", "network")]
        rows.append([CONTENDERS[name].title, *cells, ratio(found["mixed"], found["network"], "rate")])
    head = ["contender", "forty sizes, padded Mpixel/s", "one size", "forty / one"]
    print_table(f"### mixed sizes: {mixed:.3f} padded megapixels an image, one size {fixed:.3f}", head, rows)


def main() -> None:
    """Measure what has no outcome yet; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=8, help="so many of IMAGES; 8 of camvid.py hold 1,402 images")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.bundle = str(Path(options.bundle).resolve())
    inputs = prepare(options.images, options.work, options.files)
    write_onnx(options.bundle, options.work / ONNX)
    outcomes = Outcomes(options.work / "outcomes.jsonl")
    for case in ("warm-up", *options.cases):
        measure_case(case, inputs, outcomes, options)
    for case in options.cases:
        print_case(case, outcomes, options)
    if "mixed" in options.cases:
        print_mixed(inputs, outcomes, options)


if __name__ == "__main__":
    main()
