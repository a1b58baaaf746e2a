"""The whole job on synthetic streets: draw, train on two workers, segment a collection with bad pictures in it, score.

Every part is the real one, only small. What is already there is kept, so that the second run says what it skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fcn_ray.bundle import load_bundle
from fcn_ray.config import SegmentConfig, TrainConfig
from fcn_ray.config_text import load_config
from fcn_ray.datasets import scenes
from fcn_ray.evaluation import Evaluation, evaluate, format_table
from fcn_ray.images.codec import decode_image, decode_label
from fcn_ray.inference.job import segment
from fcn_ray.inference.report import SegmentReport
from fcn_ray.reports.console import percent, say
from fcn_ray.reports.page import Picture, Table, write_page
from fcn_ray.reports.progress import format_duration
from fcn_ray.reports.training_lines import TrainingLines
from fcn_ray.tables.lookup import MaskIndex, stream_labels
from fcn_ray.tables.schema import MASK
from fcn_ray.training.job import train

TRAIN_SCENES, VAL_SCENES, COLLECTION_SCENES = 256, 32, 60
PICTURES = 12

TRAINING = {
    "model.width": 0.25,
    "model.fc_channels": 128,
    "model.dropout": 0.1,
    "augment.crop": (96, 128),
    "augment.scale": (0.8, 1.25),
    "optimizer.learning_rate": 0.03,
    "optimizer.warmup_steps": 100,
    "workers.count": 2,
    "workers.threads": 1,
    "epochs": 20,
    "val_every": 4,
    "batch_size": 8,
}
"""A quarter of VGG16's channels, from scratch: enough for drawn streets, and small enough for two cores."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo made and how good it is."""

    out: str
    evaluation: Evaluation
    segmented: SegmentReport
    skipped: tuple[str, ...]
    seconds: float
    page: str = field(default="")

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield ""
        yield from format_table(self.evaluation).splitlines()
        yield ""
        yield from self.segmented.lines()
        if self.skipped:
            yield f"skipped, there already: {', '.join(self.skipped)} (delete {self.out} to start over)"
        yield f"demo done in {format_duration(self.seconds)}; open {self.page}"


def demo(out: str = "demo-out", *, verbose: bool = False) -> DemoReport:
    """Leave `out`/bundle, `out`/collection, `out`/masks and `out`/report.html; parts that are there are kept."""
    start = time.monotonic()
    root = Path(out)
    skipped: list[str] = []

    def make(path: Path, what: str, how: Callable[[Path], object]) -> None:
        """`how` writes under another name first: what has its name is whole."""
        if path.exists():
            skipped.append(what)
            return
        say(f"making {what}: {path}")
        unfinished = path.with_name(f".unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        how(unfinished)
        unfinished.rename(path)

    train_set, val_set = root / "scenes" / "train.parquet", root / "scenes" / "val.parquet"
    make(train_set, "training scenes", lambda path: scenes.write_scenes_parquet(path, TRAIN_SCENES, seed=1))
    make(val_set, "validation scenes", lambda path: scenes.write_scenes_parquet(path, VAL_SCENES, seed=2))
    make(root / "collection", "collection", lambda path: scenes.write_collection(path, COLLECTION_SCENES, seed=3))
    make(root / "bundle", "bundle", lambda path: _train(root, train_set, val_set, path, verbose))

    collection, masks = root / "collection", root / "masks"
    flags = {"input": str(collection / "images"), "output": str(masks), "model": str(root / "bundle")}
    say(f"segmenting {collection / 'images'}")
    segmented = segment(load_config(SegmentConfig, flags=flags | {"chunk.rows": 8}), verbose=verbose)
    if not segmented.labelled:
        skipped.append(f"masks of {segmented.skipped} images")
    evaluation = evaluate(segmented.run, str(collection / "labels"))
    page = root / "report.html"
    report = DemoReport(out, evaluation, segmented, tuple(skipped), time.monotonic() - start, str(page))
    _write_page(report, collection, root / "bundle")
    return report


def _train(root: Path, train_set: Path, val_set: Path, bundle: Path, verbose: bool) -> None:
    """Train, or go on where a demo that was stopped left off; then copy the bundle to its place."""
    flags = {"data": str(train_set), "val": str(val_set), "out": str(root / "training"), "resume": True}
    report = train(load_config(TrainConfig, flags=TRAINING | flags), TrainingLines().hear, verbose=verbose)
    shutil.copytree(report.bundle, bundle)


def _write_page(report: DemoReport, collection: Path, bundle: Path) -> None:
    evaluation, segmented = report.evaluation, report.segmented
    scores = evaluation.scores
    rate = segmented.images_per_second
    facts = [
        ("mean IoU", percent(scores.mean_iou)),
        ("pixel accuracy", percent(scores.pixel_accuracy)),
        ("images", f"{segmented.images}, {segmented.bad} of them without a mask"),
        ("speed", f"{rate:.1f} images/s" if rate else "nothing was left to segment"),
        ("network", f"FCN-{load_bundle(str(bundle)).spec.variant}, digest {load_bundle(str(bundle)).digest[:12]}"),
    ]
    tables = [
        Table(
            "IoU by class",
            ("class", "IoU"),
            [(n, percent(v)) for n, v in zip(evaluation.labels.names, scores.class_iou, strict=True)],
        ),
        Table("Images by status", ("status", "images"), [(s, str(c)) for s, c in sorted(segmented.statuses.items())]),
    ]
    title = "fcn_ray demo: synthetic streets"
    write_page(report.page, title, facts, tables, list(_pictures(report, collection)), evaluation.labels)


def _pictures(report: DemoReport, collection: Path) -> Iterator[Picture]:
    """Some images, spread over the collection, with their labels and masks."""
    index = MaskIndex.open(report.segmented.run)
    labels = list(stream_labels(str(collection / "labels"), MASK))
    for place in np.linspace(0, len(labels) - 1, PICTURES).astype(int):
        label = labels[place]
        mask = decode_label(index.take(label) or b"", label.where)
        yield Picture(label.key, _image(collection / "images", label.key), decode_label(label.data, label.where), mask)


def _image(images: Path, key: str) -> np.ndarray:
    """Pixels of the image with this key, see tables.lookup."""
    path, _, row = key.partition("#")
    if row:
        group = pq.read_table(images / path, columns=["image"])
        data = group["image"][int(row)].as_py()["bytes"]
    else:
        (file,) = (images / path).parent.glob(f"{Path(path).name}.*")
        data = file.read_bytes()
    return decode_image(data, 10**8).pixels
