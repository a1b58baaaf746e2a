from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fcn_ray.bundle import load_bundle
from fcn_ray.errors import BundleError
from fcn_ray.inference.predictor import Predictor
from fcn_ray.inference.stages import PIXELS
from fcn_ray.tables import schema

pytestmark = pytest.mark.keras


def _decoded(images: list[np.ndarray | None]) -> pa.Table:
    return pa.table(
        {
            "row": list(range(len(images))),
            PIXELS: pa.array([None if i is None else i.tobytes() for i in images], pa.large_binary()),
            schema.HEIGHT: pa.array([i if i is None else i.shape[0] for i in images], pa.int32()),
            schema.WIDTH: pa.array([i if i is None else i.shape[1] for i in images], pa.int32()),
            schema.STATUS: ["null" if i is None else "ok" for i in images],
            schema.ERROR: pa.array(["none" if i is None else None for i in images], pa.string()),
        }
    )


@pytest.fixture(scope="module")
def images() -> list[np.ndarray | None]:
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (33, 64), (7, 9), (40, 50), (64, 64), (1, 1)]
    drawn: list[np.ndarray | None] = [rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes]
    return [*drawn[:3], None, *drawn[3:]]


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor(str(tiny_bundle), load_bundle(str(tiny_bundle)).digest, threads=0, batch_pixels=3 * 64 * 64)


def test_every_image_has_the_mask_that_it_has_alone(predictor: Predictor, images: list[np.ndarray | None]) -> None:
    together = predictor(_decoded(images))
    assert together["row"].to_pylist() == list(range(7))
    assert PIXELS not in together.column_names
    for row, image in enumerate(images):
        alone = predictor(_decoded([image]))
        for name in (schema.MASK, schema.CLASS_PIXELS, schema.STATUS):
            assert together[name][row].as_py() == alone[name][0].as_py()


def test_counts_and_confidences_belong_to_the_mask(predictor: Predictor, images: list[np.ndarray | None]) -> None:
    table = predictor(_decoded(images))
    for row, image in zip(table.to_pylist(), images, strict=True):
        if image is None:
            assert row[schema.MASK] is row[schema.CLASS_PIXELS] is row[schema.MEAN_CONFIDENCE] is None
            continue
        mask = np.frombuffer(row[schema.MASK], np.uint8)
        assert mask.size == image.shape[0] * image.shape[1]
        assert row[schema.CLASS_PIXELS] == np.bincount(mask, minlength=3).tolist()
        assert 1 / 3 <= row[schema.MIN_CLASS_CONFIDENCE] <= row[schema.MEAN_CONFIDENCE] + 1e-6 <= 1 + 2e-6


def test_an_image_that_fails_takes_no_other_with_it(predictor: Predictor, images: list[np.ndarray | None]) -> None:
    good, bad = images[0], np.full((40, 50, 3), 13, np.uint8)
    assert good is not None
    whole = predictor._predict

    def fails_on_thirteen(batch: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> object:
        if (batch[:, 0, 0, 0] == 13).any():
            raise MemoryError("no room for thirteen")
        return whole(batch, heights, widths)

    predictor._predict = fails_on_thirteen  # type: ignore[assignment]
    try:
        table = predictor(_decoded([good, bad, good]))
    finally:
        predictor._predict = whole
    assert table[schema.STATUS].to_pylist() == ["ok", "predict", "ok"]
    assert table[schema.ERROR].to_pylist() == [None, "MemoryError: no room for thirteen", None]
    assert table[schema.MASK][1].as_py() is None


def test_another_bundle_than_planned_is_refused(tiny_bundle: Path) -> None:
    other = Predictor(str(tiny_bundle), "0000", threads=0, batch_pixels=1)
    with pytest.raises(BundleError, match="the job was planned with 0000"):
        other(_decoded([None]))


def test_a_broken_device_is_no_fault_of_the_images(
    predictor: Predictor, images: list[np.ndarray | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: np.ndarray) -> object:
        raise RuntimeError("device lost")

    monkeypatch.setattr(predictor, "_predict", broken)
    with pytest.raises(RuntimeError, match="device lost"):
        predictor(_decoded(images))
