from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcn_ray.bundle import load_bundle
from fcn_ray.errors import BundleError
from fcn_ray.models.probe import Answer, ask, check_answer, picture


def _answer(image_to_mask: object, confidence: float = 0.5) -> Answer:
    def predict(images: np.ndarray, sizes: np.ndarray, cores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert images.shape == (1, *sizes[0], 3)
        masks = image_to_mask(images)  # type: ignore[operator]
        pixels = np.array([[masks.size]])
        return masks, pixels, pixels * confidence

    return ask(predict)


def test_the_picture_is_the_same_everywhere() -> None:
    image = picture()
    assert (image.shape, image.dtype) == ((64, 96, 3), np.uint8)
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[5, 17].tolist() == [5 * 3 + 6, 34 + 10, 120 + 5]
    assert len(np.unique(image)) > 150, "it has something of everything"


def test_what_precisions_differ_by_is_let_through_and_no_more() -> None:
    right = _answer(lambda images: images.argmax(-1).astype(np.uint8))
    check_answer(right, replace(right, confidence=0.515), "float32", "here")
    check_answer(right, replace(right, confidence=0.54), "bfloat16", "here")
    with pytest.raises(BundleError, match=r"here does not compute .* confidence is 0\.540, not 0\.500"):
        check_answer(right, replace(right, confidence=0.54), "float32", "here")
    with pytest.raises(BundleError, match=r"confidence is 0\.560"):
        check_answer(right, replace(right, confidence=0.56), "bfloat16", "here")
    with pytest.raises(BundleError, match=r"0% of a test picture's pixels"):
        check_answer(right, _answer(lambda images: np.full(images.shape[:3], 3, np.uint8)), "bfloat16", "here")
    with pytest.raises(BundleError, match=r"confidence is nan"):
        check_answer(right, replace(right, confidence=float("nan")), "bfloat16", "here")


@pytest.mark.keras
def test_a_machine_that_computes_something_else_is_refused(tiny_bundle: Path) -> None:
    from fcn_ray.inference.network import compile_network

    bundle = load_bundle(str(tiny_bundle))
    assert bundle.answer is not None
    for precision in ("float32", "bfloat16"):
        compile_network(bundle, 0, precision)
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] in ("0", "1"), "said here, not left to TensorFlow"
    broken = replace(bundle, answer=replace(bundle.answer, confidence=bundle.answer.confidence - 0.1))
    with pytest.raises(BundleError, match=r"\(tensorflow, float32\) does not compute what this bundle's network"):
        compile_network(broken, 0, "float32")
    compile_network(replace(broken, answer=None), 0, "float32")
