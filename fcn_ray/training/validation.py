"""The four FCN metrics over the validation set, each image at its own size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcn_ray.images.geometry import Pixels, pad_batch, padded_size
from fcn_ray.labels import LabelSet
from fcn_ray.models.metrics import Confusion, Scores, confusion_matrix, scores
from fcn_ray.models.prediction import MaskFn
from fcn_ray.training import ingest, order
from fcn_ray.training.feeding import Feeder
from fcn_ray.training.preflight import Job
from fcn_ray.training.replica import Replica

COLLAPSED = 0.999
"""Share of the pixels that one class is predicted for, when the labels hold others too."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What the network is worth on the validation set."""

    scores: Scores
    confusion: Confusion


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One validation image: (H, W, 3), its label and its mask (H, W), all uint8."""

    key: str
    image: Pixels
    label: Pixels
    mask: Pixels


def validate(replica: Replica, find_masks: MaskFn, job: Job, feeder: Feeder) -> Validation:
    """Metrics over the whole set, which the workers share; the same on every worker."""
    total = np.zeros((len(job.labels), len(job.labels) + 1), np.int64)
    for sample in predict_share(find_masks, job, replica.rank, replica.world, feeder):
        total += confusion_matrix(sample.label, sample.mask, len(job.labels), job.labels.ignore_id)
    total = replica.sum_over_workers(total)
    return Validation(scores(total), total)


def predict_share(find_masks: MaskFn, job: Job, rank: int, world: int, feeder: Feeder) -> Iterator[Sample]:
    """The validation images of one of `world` equal shares, with their masks."""
    n_rows = sum(piece.n_rows for piece in job.val_pieces)
    start, stop = (n_rows * r // world for r in (rank, rank + 1))
    share = order.take_rows(order.plan_pass(job.val_pieces), ((start, stop),))
    for batch in ingest.stream(share, job.columns, None, 8, feeder) if share else ():
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            image, label = ingest.decode_sample(row, job.labels, job.config.max_pixels)
            yield Sample(row[ingest.KEY], image, label, predict_mask(find_masks, image, job.spec.grid))


def predict_mask(find_masks: MaskFn, image: Pixels, grid: int) -> Pixels:
    """Mask (H, W) uint8 of one image (H, W, 3), whole; `find_masks` is compiled."""
    height, width = image.shape[:2]
    padded = pad_batch([image], *padded_size(height, width, grid))
    masks, _ = find_masks(padded, np.array([[height, width]], np.int32))
    return np.asarray(masks)[0, :height, :width]


def predicts_one_class(confusion: Confusion, labels: LabelSet) -> str | None:
    """Name of the class that nearly every pixel is predicted as, although the labels hold other classes too."""
    predicted = confusion.sum(axis=0)[: len(confusion)]
    winner = int(np.argmax(predicted))
    others = confusion.sum() - confusion[winner].sum()
    total = int(confusion.sum())
    if total and predicted[winner] >= COLLAPSED * total and others > (1 - COLLAPSED) * total:
        return labels.names[winner]
    return None
