"""FCN-32s, 16s and 8s in the paper's stages on drawn streets with thin poles: mean IoU of each, on test scenes.

python tests/benchmarks/staged.py WORK [--epochs 20]

Each stage starts from the bundle of the one before and trains as long as it; the same test scenes score all three.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from fcn_ray import evaluate, segment, train
from fcn_ray.config import SegmentConfig, TrainConfig
from fcn_ray.config_text import load_config
from fcn_ray.datasets.scenes import write_scenes_parquet
from fcn_ray.demo import TRAINING

STAGES = ("32s", "16s", "8s")


def main() -> None:
    """Draw, train three times, score three times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", 256, 1), ("val", 32, 2), ("test", 60, 4)):
        write_scenes_parquet(options.work / f"{name}.parquet", count, seed=seed)
    rows = []
    before: str | None = None
    for stage in STAGES:
        start = time.monotonic()
        before = train_stage(options.work, stage, before, options.epochs)
        scores = score_stage(options.work, stage, before)
        rows.append((stage, scores, time.monotonic() - start))
        print(stage, "done", flush=True)
    names = rows[0][1].labels.names
    print("| | " + " | ".join(stage for stage, _, _ in rows) + " |")
    print("| --- |" + " --- |" * len(rows))
    for title, values in [
        ("**mean IoU**", [s.scores.mean_iou for _, s, _ in rows]),
        ("pixel accuracy", [s.scores.pixel_accuracy for _, s, _ in rows]),
        *((name, [s.scores.class_iou[index] for _, s, _ in rows]) for index, name in enumerate(names)),
    ]:
        print(f"| {title} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    print("| minutes | " + " | ".join(f"{seconds / 60:.1f}" for _, _, seconds in rows) + " |")


def train_stage(work: Path, stage: str, start: str | None, epochs: int) -> str:
    """Folder of the stage's bundle; the first starts at random, the others from `start`."""
    settings: dict[str, Any] = TRAINING | {"epochs": epochs, "model.variant": stage, "optimizer.backbone_rate": 1.0}
    if start:
        shape = ("model.width", "model.fc_channels", "model.dropout")
        settings = {key: value for key, value in settings.items() if key not in shape} | {"model.start": start}
    places = {"data": str(work / "train.parquet"), "val": str(work / "val.parquet"), "out": str(work / stage)}
    return train(load_config(TrainConfig, flags=settings | places)).bundle


def score_stage(work: Path, stage: str, bundle: str) -> Any:
    """Evaluation of the stage on the test scenes."""
    test = str(work / "test.parquet")
    places = {"input": test, "output": str(work / f"masks-{stage}"), "model": bundle}
    return evaluate(segment(load_config(SegmentConfig, flags=places)).run, test)


if __name__ == "__main__":
    main()
