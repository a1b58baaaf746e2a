"""A look at some images and labels of a training set before it is trained on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fcn_ray.errors import DataError
from fcn_ray.labels import LabelSet
from fcn_ray.training import ingest, order

logger = logging.getLogger(__name__)

CHECKED_PIECES, CHECKED_SAMPLES = 16, 16
"""Row groups, spread evenly over each set, and images of each that are decoded before the start; all others are checked
as they are read. Their bytes stand for the content of the set: with other numbers no run could be gone on with."""

CONTENT_DIGITS = 16
"""Of the digest of that content."""


class Sampled(NamedTuple):
    """What was seen of a set: the digest of some rows' bytes ("" without a set), how many, and the ids in their labels.

    Labels that were changed in place may leave all sizes as they were.
    """

    digest: str
    rows: int
    ids: frozenset[int]


def check_samples(
    collection: ingest.Collection | None, columns: ingest.Columns, labels: LabelSet, max_pixels: int
) -> Sampled:
    """Decode rows that are spread over a set. Raises DataError for a bad row."""
    content, seen, ids = hashlib.sha256(), 0, set[int]()
    for piece in _spread([piece for piece in collection.pieces if piece.n_rows], CHECKED_PIECES) if collection else ():
        rows = _spread(range(piece.n_rows), CHECKED_SAMPLES)
        read = order.Read((piece,), np.array([[0, row] for row in rows], np.int32))
        for row in ingest.read_rows(read, columns).to_pylist():
            _, label = ingest.decode_sample(row, labels, max_pixels)
            ids.update(np.unique(label).tolist())
            seen += 1
            for name in (ingest.IMAGE, ingest.LABEL):
                content.update(hashlib.sha256(row[name]).digest())
    digest = content.hexdigest()[:CONTENT_DIGITS] if collection else ""
    return Sampled(digest, seen, frozenset(ids - {labels.ignore_id}))


def check_classes(data: str, found: Sampled, n_rows: int, labels: LabelSet) -> None:
    """A network of one class is right everywhere, and worth nothing. Raises DataError when no label has another."""
    names = [labels.names[index] for index in sorted(found.ids)]
    missing = [name for name in labels.names if name not in names]
    if len(found.ids) < 2:
        said = (
            f"{data}: the labels of {found.rows} images hold no class but {names}, of {list(labels.names)}; "
            f"{labels.ignore_id} means to ignore a pixel: if it is a class in your masks, give it the class's id"
        )
        if found.rows == n_rows:
            raise DataError(said)
        logger.warning(said)
    elif missing and found.rows == n_rows:
        logger.warning("%s: no label holds %s", data, missing)


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of `values`, at even distances, the first and the last among them."""
    places = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))
    return [values[place] for place in places]
