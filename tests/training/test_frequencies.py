from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.errors import DataError
from fcn_ray.images.codec import encode_mask
from fcn_ray.labels import LabelSet
from fcn_ray.training.frequencies import (
    LabelCounts,
    count_labels,
    count_piece,
    find_class_weights,
    inverse_weights,
    median_weights,
)
from fcn_ray.training.ingest import Columns, Piece, open_collection
from tests import pictures
from tests.training.making import damage

COLUMNS = Columns("image", "mask")
VOID = 255

FIRST = np.uint8([[0, 0, 0, 0], [1, 1, VOID, VOID]])
SECOND = np.uint8([[0, 0, 0, 0], [0, 0, 0, 2]])
"""Two labels: 6 valid pixels with classes 0 and 1, 8 with classes 0 and 2."""

COUNTS = LabelCounts(pixels=np.array([11, 2, 1]), image_pixels=np.array([14, 6, 8]))
"""Of both, by hand."""


def _write(path: Path, labels: list[np.ndarray | bytes], group: int = 1) -> tuple[Piece, ...]:
    masks = [label if isinstance(label, bytes) else encode_mask(label) for label in labels]
    pq.write_table(pa.table({"image": [b"not read"] * len(masks), "mask": masks}), path, row_group_size=group)
    return open_collection(str(path), COLUMNS).pieces


# --------------------------------------------------------------------------------------------------------- weights


def test_inverse_weights_by_hand() -> None:
    weights = inverse_weights(COUNTS)
    assert weights == pytest.approx((14 / 33, 14 / 6, 14 / 3))
    assert np.dot(weights, COUNTS.pixels) / COUNTS.pixels.sum() == pytest.approx(1)


def test_median_weights_by_hand() -> None:
    # Frequencies 11/14, 2/6 and 1/8; a frequency over all 14 pixels would give other weights.
    assert median_weights(COUNTS) == pytest.approx((1 / 3 * 14 / 11, 1, 1 / 3 * 8))


def test_an_absent_class_weighs_one_and_leaves_the_others_alone() -> None:
    wider = LabelCounts(np.array([11, 0, 2, 1]), np.array([14, 0, 6, 8]))
    for weigh in (inverse_weights, median_weights):
        first, absent, *others = weigh(wider)
        assert absent == 1.0
        assert (first, *others) == weigh(COUNTS)


def test_weights_are_whole_beyond_32_bits() -> None:
    counts = LabelCounts(np.array([3 * 2**40, 2**40]), np.array([2**42, 2**42]))
    assert inverse_weights(counts) == pytest.approx((2 / 3, 2))
    assert median_weights(counts) == pytest.approx((2 / 3, 2))


# ---------------------------------------------------------------------------------------------------------- counts


def test_pixels_of_a_row_group_by_hand(tmp_path: Path) -> None:
    (piece,) = _write(tmp_path / "train.parquet", [FIRST, SECOND], group=2)
    counts = count_piece(piece, COLUMNS, pictures.LABELS)
    assert counts.dtype == np.int64
    assert counts.tolist() == [COUNTS.pixels.tolist(), COUNTS.image_pixels.tolist()]


def test_a_bad_label_is_refused_by_its_row(tmp_path: Path) -> None:
    *_, piece = _write(tmp_path / "train.parquet", [FIRST, SECOND, FIRST, SECOND + 1], group=2)
    with pytest.raises(DataError, match=r"^train\.parquet#3: mask holds class ids \[3\], expected 0..2 or 255"):
        count_piece(piece, COLUMNS, pictures.LABELS)
    *_, piece = _write(tmp_path / "train.parquet", [FIRST, SECOND, b"no png"], group=2)
    with pytest.raises(DataError, match=r"^train\.parquet#2: mask"):
        count_piece(piece, COLUMNS, pictures.LABELS)
    damage(tmp_path / "train.parquet", 1)
    with pytest.raises(DataError, match=r"train\.parquet: row group 1 cannot be read"):
        count_piece(piece, COLUMNS, pictures.LABELS)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_tasks_count_what_the_labels_hold(tmp_path: Path) -> None:
    sizes = ((48, 64), (40, 40), (33, 70))
    pictures.write_parquet(tmp_path / "a.parquet", 13, sizes=sizes, group=2)
    pictures.write_parquet(tmp_path / "deep" / "b.parquet", 3, seed=1)
    counts = count_labels(open_collection(str(tmp_path), COLUMNS).pieces, COLUMNS, pictures.LABELS)
    labels = [pictures.draw(rng, *sizes[i % 3])[1] for rng in [np.random.default_rng(0)] for i in range(13)]
    labels += [pictures.draw(rng, 48, 64)[1] for rng in [np.random.default_rng(1)] for _ in range(3)]
    assert counts.pixels.tolist() == [sum(int((label == c).sum()) for label in labels) for c in range(3)]
    valid = sum(int((label != VOID).sum()) for label in labels)
    assert counts.image_pixels.tolist() == [valid] * 3


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_weights_of_a_data_set_and_a_warning_that_names_what_it_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = _write(tmp_path / "train.parquet", [FIRST, SECOND])
    labels = LabelSet.from_names(["sky", "road", "car", "bus", "tram"])
    with caplog.at_level(logging.WARNING, "fcn_ray"):
        found = find_class_weights("median", pieces, COLUMNS, labels)
    assert found == (*median_weights(COUNTS), 1.0, 1.0)
    assert [record.message for record in caplog.records] == [
        "no training label holds a pixel of bus, tram: class weight 1"
    ]
    assert find_class_weights("inverse", pieces, COLUMNS, pictures.LABELS) == inverse_weights(COUNTS)
    pieces = _write(tmp_path / "void.parquet", [FIRST | VOID])
    with pytest.raises(DataError, match="nothing but void"):
        find_class_weights("inverse", pieces, COLUMNS, labels)
