"""The page about a training: its curves, its best epoch class by class, and the images that went best and worst."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fcn_ray.labels import LabelSet
from fcn_ray.models.metrics import Confusion
from fcn_ray.reports.charts import Scale, Values, draw_class_bars, draw_confusion, draw_curves
from fcn_ray.reports.console import percent
from fcn_ray.reports.page import Chart, Picture, Table, write_page
from fcn_ray.reports.progress import format_duration

Record = Mapping[str, Any]
"""One "epoch" record of a training, as in metrics.jsonl."""

FOLD = 12
"""Rows: a longer table is folded, or the pictures below it would not be found."""

CONFUSIONS = 10
"""Most rows in the table of what is taken for what."""


def write_training_page(
    path: str,
    title: str,
    facts: Sequence[tuple[str, str]],
    curve: Sequence[Record],
    labels: LabelSet,
    *,
    best: Sequence[Picture] = (),
    worst: Sequence[Picture] = (),
) -> None:
    """Write one HTML file about a training to `path`, over what is there; it holds all it shows and runs no script.

    `facts` are (name, value), `curve` the "epoch" records in the order of their epochs. The classes are shown as they
    were in the epoch of `find_best`. `best` and `worst` are validation images with their label and mask. Without a
    validation, and without any epoch, the page has what there is.
    """
    chosen = find_best(curve)
    charts = list(_curves(curve, chosen["epoch"] if chosen else None))
    tables: list[Table] = []
    if chosen is not None:
        charts += _class_charts(chosen, labels)
        tables += _class_tables(chosen, labels)
    if curve:
        tables.append(_epoch_table(curve))
    pictures = [replace(picture, heading="Worst validation images") for picture in worst]
    pictures += [replace(picture, heading="Best validation images") for picture in best]
    write_page(path, title, facts, tables, pictures, labels, charts)


def find_best(curve: Sequence[Record]) -> Record | None:
    """The epoch with the highest validation mean IoU, the earlier one of equals; None when none has one.

    Where only some epochs have a confusion matrix (that of the bundle, scored again), it is one of them.
    """
    scored = [record for record in curve if _known(_value(record, "val", "mean_iou"))]
    return max(scored, key=lambda r: ("confusion" in r["val"], r["val"]["mean_iou"]), default=None)


def _curves(curve: Sequence[Record], best: int | None) -> Iterator[Chart]:
    """Everything that was measured by epoch, two values of one kind in one chart."""
    wanted: list[tuple[str, Scale, dict[str, Values]]] = [
        ("Training loss", "loss", {"loss": [_value(r, "loss") for r in curve]}),
        (
            "Validation",
            "percent",
            {
                "mean IoU": [_value(r, "val", "mean_iou") for r in curve],
                "pixel accuracy": [_value(r, "val", "pixel_accuracy") for r in curve],
            },
        ),
        ("Learning rate", "linear", {"rate": [_value(r, "learning_rate") for r in curve]}),
        ("Images per second", "linear", {"images": [_value(r, "images_per_second") for r in curve]}),
        ("Time spent waiting for input, %", "linear", {"wait": [_scaled(r, "input_wait", 100) for r in curve]}),
        (
            "Peak memory of a worker, GB",
            "linear",
            {"memory": [_scaled(r, "memory_bytes", 1e-9) for r in curve]},
        ),
    ]
    for title, scale, lines in wanted:
        known = {name: values for name, values in lines.items() if any(map(_known, values))}
        if known:
            mark = best if title == "Validation" else None
            yield draw_curves(title, [r["epoch"] for r in curve], known, scale=scale, best=mark)


def _class_charts(record: Record, labels: LabelSet) -> Iterator[Chart]:
    epoch, val = record["epoch"], record["val"]
    yield draw_class_bars(f"IoU by class, epoch {epoch}", labels.names, val["class_iou"], labels.palette)
    if "confusion" in val:
        title = f"Confusion, % of each class, epoch {epoch}"
        yield draw_confusion(title, labels.names, np.asarray(val["confusion"], np.int64))


def _class_tables(record: Record, labels: LabelSet) -> Iterator[Table]:
    if "confusion" not in record["val"]:
        return
    confusion = np.asarray(record["val"]["confusion"], np.int64)
    mistakes = _confusion_rows(confusion, labels)
    if mistakes:
        yield Table("Most frequent mistakes", ("label", "predicted", "share of its pixels", "pixels"), mistakes)
    totals, every = confusion.sum(axis=1), confusion.sum()
    rows = [
        (name, percent(iou), percent(_share(correct, total)), percent(_share(total, every)))
        for name, iou, correct, total in zip(
            labels.names, record["val"]["class_iou"], np.diagonal(confusion), totals, strict=True
        )
    ]
    yield Table("Classes", ("class", "IoU", "accuracy", "share of all pixels"), rows, folded=len(rows) > FOLD)


def _confusion_rows(confusion: Confusion, labels: LabelSet) -> list[tuple[str, str, str, str]]:
    """The largest shares of a class that became another one, from 1 % on."""
    totals = confusion.sum(axis=1)
    names = [*labels.names, "no class"]
    found = [
        (confusion[i, j] / totals[i], i, j)
        for i, j in itertools.product(*map(range, confusion.shape))
        if i != j and confusion[i, j] >= max(1, 0.01 * totals[i])
    ]
    largest = sorted(found, key=lambda entry: (-entry[0], entry[1:]))[:CONFUSIONS]
    return [(names[i], names[j], percent(share), f"{confusion[i, j]:,}") for share, i, j in largest]


def _epoch_table(curve: Sequence[Record]) -> Table:
    """One row for each epoch; what no epoch has gets no column."""
    columns: list[tuple[str, list[str]]] = [
        ("epoch", [str(r["epoch"]) for r in curve]),
        ("steps", [str(r["step"]) for r in curve]),
        ("loss", [_text(_value(r, "loss"), "{:.4f}") for r in curve]),
        *(
            (title, [_percent_text(_value(r, "val", name)) for r in curve])
            for title, name in (
                ("mean IoU", "mean_iou"),
                ("pixel accuracy", "pixel_accuracy"),
                ("mean accuracy", "mean_accuracy"),
                ("f.w. IoU", "frequency_weighted_iou"),
            )
        ),
        ("images/s", [_text(_value(r, "images_per_second"), "{:.1f}") for r in curve]),
        ("input wait", [_percent_text(_value(r, "input_wait")) for r in curve]),
        ("time", [_duration_text(_value(r, "seconds")) for r in curve]),
        ("memory, GB", [_text(_scaled(r, "memory_bytes", 1e-9), "{:.2f}") for r in curve]),
    ]
    kept = [(title, cells) for title, cells in columns if any(cells)]
    rows = list(zip(*(cells for _, cells in kept), strict=True))
    return Table("Epochs", [title for title, _ in kept], rows, folded=len(rows) > FOLD)


def _value(record: Record, *keys: str) -> float | None:
    """The number under these keys; None when any of them is not there."""
    found: Any = record
    for key in keys:
        found = found.get(key) if found else None
    return None if found is None else float(found)


def _scaled(record: Record, key: str, factor: float) -> float | None:
    value = _value(record, key)
    return None if value is None else factor * value


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value) if math.isfinite(value) else "-"


def _percent_text(value: float | None) -> str:
    return "" if value is None else percent(value)


def _duration_text(value: float | None) -> str:
    return "" if value is None else format_duration(value)


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
