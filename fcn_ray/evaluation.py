"""Masks against labels: one confusion matrix over a whole collection, and the four FCN metrics from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcn_ray import storage
from fcn_ray.errors import ConfigError, DataError, StorageError
from fcn_ray.images.codec import decode_label
from fcn_ray.images.geometry import Pixels
from fcn_ray.labels import LabelSet
from fcn_ray.models.metrics import Confusion, Scores, confusion_matrix, scores
from fcn_ray.tables import schema
from fcn_ray.tables.lookup import MaskIndex, StoredLabel, stored_label_set, stream_labels

METRICS = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
"""The four scores of the FCN paper (section 5), by their names in Scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How good the masks of a collection are."""

    labels: LabelSet
    confusion: Confusion
    """Pixels, (K, K + 1) int64: rows are labels, columns masks, the last one ids in masks that are no class."""
    scores: Scores
    images: int
    """Images with a label and a mask."""
    unlabelled: int
    """Masks without a label; they do not count."""
    bad: int = 0
    """Labels whose image has no mask, as its row says; they do not count."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for a score that is not defined, as of a class that is in no label and no mask."""
        values = self.scores.to_dict()
        return {
            "images": self.images,
            "unlabelled": self.unlabelled,
            "bad": self.bad,
            **values,
            "class_iou": dict(zip(self.labels.names, values["class_iou"], strict=True)),
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    masks: str, labels: str, *, mask_column: str = schema.MASK, classes: Sequence[str] | None = None
) -> Evaluation:
    """Compare `masks` (the output of segment, one run of it, or a folder of id PNGs) with `labels`.

    `labels` is a Parquet file, or a folder of Parquet files (labels in `mask_column`) and id PNGs, laid out as the
    segmented images were. Void is not counted. `classes` names the ids where no Parquet file does. An image whose row
    says that it is bad does not count. Raises DataError for a label without an image, for sizes or ids that do not fit,
    and when all are bad; ConfigError for what cannot be evaluated at all.
    """
    index = MaskIndex.open(masks)
    label_set = _agree(index.labels, stored_label_set(labels), classes)
    confusion = np.zeros((len(label_set), len(label_set) + 1), np.int64)
    images = bad = 0
    for label in stream_labels(labels, mask_column):
        if (mask := index.take(label)) is None:
            bad += 1
            continue
        confusion += _compare(label, mask, label_set)
        images += 1
    if bad and not images:
        raise DataError(f"{masks}: none of the {bad} labelled images has a mask (column status says why)")
    if not images:
        raise ConfigError(
            f"{labels} holds no labels; expected Parquet with a {mask_column!r} column, or a folder of id PNGs "
            "(patterns, lists and tars are not read here)"
        )
    return Evaluation(label_set, confusion, scores(confusion), images, index.count_left(), bad)


def write_scores(evaluation: Evaluation, uri: str) -> None:
    """`to_dict` as JSON, over what is there; links and devices are written to. Raises StorageError."""
    data = (json.dumps(evaluation.to_dict(), indent=1) + "\n").encode()
    if not storage.is_local(uri):
        storage.replace(uri, data)
        return
    path = storage.local_path(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error.strerror or error}") from error


def format_table(evaluation: Evaluation) -> str:
    """The IoU of each class and the four metrics, in percent, as lines of text."""
    result = evaluation.to_dict()
    totals = [(name.replace("_", " ").replace("iou", "IoU"), result[name]) for name in METRICS]
    width = max(len(name) for name, _ in [*result["class_iou"].items(), *totals])
    rows = [
        [f"{name:<{width}}  {_percent(value):>7}" for name, value in part]
        for part in (result["class_iou"].items(), totals)
    ]
    rule = "-" * (width + 9)
    title = f"{'class':<{width}}  {'IoU':>7}"
    left = [f"{result['unlabelled']} masks have no label"] if result["unlabelled"] else []
    left += [f"{result['bad']} labels have a bad image, and no mask"] if result["bad"] else []
    said = f" ({', '.join(left)})" if left else ""
    return "\n".join([f"{result['images']} images{said}", title, rule, *rows[0], rule, *rows[1]])


def _agree(masks: LabelSet | None, labels: LabelSet | None, classes: Sequence[str] | None) -> LabelSet:
    """The one meaning of the ids. Raises ConfigError when there is none, or when masks and labels differ."""
    found = [(part, known) for part, known in (("masks", masks), ("labels", labels)) if known is not None]
    if classes is not None:
        found.append(("classes", LabelSet.from_names(classes)))
    if not found:
        raise ConfigError("neither masks nor labels say which classes their ids are: give the class names, by id")
    first, label_set = found[0]
    for part, other in found[1:]:
        if (other.names, other.ignore_id) != (label_set.names, label_set.ignore_id):
            raise ConfigError(
                f"{first} and {part} mean different classes: {_described(label_set)} and {_described(other)}; "
                "segment with a model that was trained for these labels, or map their ids"
            )
    return label_set


def _compare(label: StoredLabel, mask_data: bytes, label_set: LabelSet) -> Confusion:
    """Confusion matrix of one image."""
    truth, mask = decode_label(label.data, label.where), decode_label(mask_data, f"mask of {label.key}")
    if truth.shape != mask.shape:
        raise DataError(
            f"{label.where}: the label of {label.key!r} is {_size(truth)} pixels (height x width), its mask "
            f"{_size(mask)}; segment the images in the size in which they were labelled, or resize the labels (nearest)"
        )
    try:
        return confusion_matrix(truth, mask, len(label_set), label_set.ignore_id)
    except DataError as error:
        raise DataError(f"{label.where}: {error}") from error


def _described(label_set: LabelSet) -> str:
    return f"{list(label_set.names)} without {label_set.ignore_id}"


def _size(ids: Pixels) -> str:
    return f"{ids.shape[0]} x {ids.shape[1]}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
