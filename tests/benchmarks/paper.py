"""The recipe of the paper's release, shortened: FCN-32s, 16s and 8s in stages, and FCN-8s at once; test scores of each.

python tests/benchmarks/paper.py WORK/camvid OUT --weights VGG16.npz [--epochs 1] [--stages 32s "8s at once"]

WORK/camvid is what camvid.py leaves. Whole images, one in each step, not augmented; sum of the loss over the image,
momentum 0.99, fixed rates: 1e-10 for 32s and at once, 1e-12 for 16s, 1e-14 for 8s, times 187,500 (the pixels of the
images they were published for) over the pixels of these. The release trained 100,000 steps a stage, from a classifier
whose fc6 and fc7 had learned; here they start at random. What is done is not done again: a killed run goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from fcn_ray.config import SegmentConfig, TrainConfig
from fcn_ray.config_text import load_config

# What trains and scores is imported where it is used: recipe_gpu.py takes the recipe to where there is no Ray.

SIZE = (360, 480)
RATE = 187_500 / (SIZE[0] * SIZE[1])
RELEASE: dict[str, Any] = {
    "batch_size": 1,
    "loss.reduction": "sum",
    "augment.crop": SIZE,
    "augment.scale": (1, 1),
    "augment.flip": False,
    "augment.colour": 0,
    "optimizer.momentum": 0.99,
    "optimizer.backbone_rate": 1.0,
    "optimizer.warmup_steps": 0,
    "optimizer.power": 0,
    "checkpoint_steps": 30,
    "seed": 1337,
    "resume": True,
}
STAGES: dict[str, tuple[str, float, str | None]] = {
    "32s": ("32s", 1e-10, None),
    "16s": ("16s", 1e-12, "32s"),
    "8s": ("8s", 1e-14, "16s"),
    "8s at once": ("8s", 1e-10, None),
}
"""Variant, rate, and the stage that it starts from."""


def train_stage(options: argparse.Namespace, name: str) -> str:
    """Folder of the stage's bundle."""
    from fcn_ray import train

    variant, rate, before = STAGES[name]
    settings = RELEASE | {"model.variant": variant, "optimizer.learning_rate": rate * RATE, "epochs": options.epochs}
    if before:
        settings |= {"model.start": str(options.out / before / "bundle")}
    else:
        # The release scales the levels of its network at once, and none in stages: what starts so, goes on so.
        settings |= {"model.weights": options.weights, "model.scales": "paper", "model.fc_channels": options.fc}
    places = {"data": str(options.camvid / "train.parquet"), "out": str(options.out / name)}
    report = train(load_config(TrainConfig, flags=settings | places), lambda record: print(record, flush=True))
    return report.bundle


def main() -> None:
    """Train and score every stage, print a table."""
    from fcn_ray import evaluate, segment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--fc", type=int, default=1024)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="16s needs 32s, 8s 16s")
    options = parser.parse_args()
    test, columns = str(options.camvid / "test.parquet"), []
    for name in options.stages:
        start = time.monotonic()
        bundle = train_stage(options, name)
        minutes = (time.monotonic() - start) / 60
        places = {"input": test, "output": str(options.out / f"masks {name}"), "model": bundle, "chunk.rows": 16}
        found = evaluate(segment(load_config(SegmentConfig, flags=places)).run, test)
        print(f"{name}: {found.scores.mean_iou:.4f} mean IoU, {minutes:.1f} minutes (of this run)", flush=True)
        columns.append((name, found))
    print("| | " + " | ".join(name for name, _ in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    labels = columns[0][1].labels.names
    rows = [("**mean IoU**", [found.scores.mean_iou for _, found in columns])]
    rows += [("pixel accuracy", [found.scores.pixel_accuracy for _, found in columns])]
    rows += [(label, [found.scores.class_iou[i] for _, found in columns]) for i, label in enumerate(labels)]
    for title, values in rows:
        print(f"| {title} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")


if __name__ == "__main__":
    main()
