"""How often each class occurs in the training labels, and the class weights that follow from it.

Ray tasks decode the labels, a row group at a time, and only counts come back. They are whole numbers, so that the
weights are the same whatever the number and the order of the tasks: a resumed run finds those that it had.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fcn_ray import cluster
from fcn_ray.errors import DataError
from fcn_ray.images.codec import decode_label
from fcn_ray.labels import LabelSet
from fcn_ray.training import ingest, order

logger = logging.getLogger(__name__)

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LabelCounts:
    """Pixels of a data set by class id, void left out; each int64 (K,)."""

    pixels: Counts
    """Pixels of the class."""
    image_pixels: Counts
    """Valid pixels of the images in which the class occurs."""


def find_class_weights(
    kind: Literal["inverse", "median"], pieces: tuple[order.Piece, ...], columns: ingest.Columns, labels: LabelSet
) -> tuple[float, ...]:
    """Class weights from the training labels; Ray must be connected. Raises DataError for labels that cannot train."""
    counts = count_labels(pieces, columns, labels)
    absent = [name for name, pixels in zip(labels.names, counts.pixels, strict=True) if not pixels]
    if len(absent) == len(labels):
        raise DataError("the training labels hold nothing but void: class weights have nothing to count")
    if absent:
        logger.warning("no training label holds a pixel of %s: class weight 1", ", ".join(absent))
    return inverse_weights(counts) if kind == "inverse" else median_weights(counts)


def inverse_weights(counts: LabelCounts) -> tuple[float, ...]:
    """One over the share of each class, scaled so that the mean weight of the labelled pixels is 1.

    Every class that occurs has the same part in the loss. One that never does has the weight 1: any would do.
    """
    present = counts.pixels > 0
    weights = np.ones(len(present))
    weights[present] = counts.pixels.sum() / (np.count_nonzero(present) * counts.pixels[present])
    return tuple(weights.tolist())


def median_weights(counts: LabelCounts) -> tuple[float, ...]:
    """Median frequency balancing (Eigen and Fergus 2015, section 6.3.2): median frequency / frequency of the class.

    A frequency is the pixels of the class over the valid pixels of the images that hold it; the median is that of the
    classes that occur. A class that never does has the weight 1: any would do.
    """
    present = counts.pixels > 0
    weights = np.ones(len(present))
    frequencies = counts.pixels[present] / counts.image_pixels[present]
    weights[present] = np.median(frequencies) / frequencies
    return tuple(weights.tolist())


def count_labels(pieces: tuple[order.Piece, ...], columns: ingest.Columns, labels: LabelSet) -> LabelCounts:
    """Count the label pixels of `pieces` in Ray tasks. Raises what `count_piece` raises, at the first bad row found."""
    total = np.zeros((2, len(labels)), np.int64)
    for counts in cluster.stream_tasks(count_piece, ((piece, columns, labels) for piece in pieces)):
        total += counts
    return LabelCounts(*total)


def count_piece(piece: order.Piece, columns: ingest.Columns, labels: LabelSet) -> Counts:
    """Both counts (2, K) of one row group. Raises DataError or SchemaError that names the row group, row or column."""
    table = ingest.read_group(piece, [columns.mask])
    total = np.zeros((2, len(labels)), np.int64)
    for row, data in enumerate(ingest.encoded(table[columns.mask], piece, columns.mask)):
        key = f"{piece.key}#{piece.first_row + row}"
        pixels = ingest.count_pixels(decode_label(data.as_py(), f"{key}: mask"), labels, key)
        total += pixels, np.where(pixels > 0, pixels.sum(), 0)
    return total
