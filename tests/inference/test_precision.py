from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_ray.bundle import load_bundle, save_bundle
from fcn_ray.config import PredictConfig, Preprocessing, SegmentConfig
from fcn_ray.inference import precision
from fcn_ray.inference.job import segment
from fcn_ray.inference.network import compile_network
from fcn_ray.inference.predictor import Predictor
from fcn_ray.labels import LabelSet
from tests.networks import tiny_model, tiny_spec

pytestmark = pytest.mark.keras

LABELS = LabelSet.from_names(["sky", "road", "car", "tree"])
EMULATING, FAST = "flags\t\t: fpu avx2 avx512f\n", "flags\t\t: fpu avx2 avx512_bf16\n"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / request.param
    save_bundle(str(folder), tiny_model(), tiny_spec(), LABELS, Preprocessing(), {}, request.param)
    return folder


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(FAST)
    return tmp_path / "cpuinfo"


def _config(folder: Path, bundle: Path) -> SegmentConfig:
    (folder / "in").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "in" / "a.png")
    return SegmentConfig(input=str(folder / "in"), output=str(folder / "out"), model=str(bundle))


@pytest.mark.parametrize(
    ("text", "emulates"),
    [(EMULATING, True), (FAST, False), ("Features\t: fp asimd bf16\n", False), ("Features\t: fp asimd\n", True)],
)
def test_the_cpu_says_what_it_has(cpu: Path, text: str, emulates: bool) -> None:
    cpu.write_text(f"processor\t: 0\nmodel name\t: bf16\n{text}")
    assert precision.cpu_emulates_bfloat16() is emulates


def test_where_it_says_nothing_nobody_is_warned(cpu: Path) -> None:
    cpu.write_text("processor\t: 0\n")
    assert precision.cpu_emulates_bfloat16() is False
    cpu.unlink()
    assert precision.cpu_emulates_bfloat16() is False


def test_each_precision_is_a_run_and_auto_is_that_of_the_bundle(bundle: Path, tmp_path: Path, cpu: Path) -> None:
    """The fingerprint of float32 is that of runs from before there was a choice: nothing of it names a precision."""
    config = _config(tmp_path, bundle)
    runs = {}
    for wanted in ("auto", "float32", "bfloat16"):
        predict = PredictConfig(precision=wanted)  # type: ignore[arg-type]
        runs[wanted] = segment(config.model_copy(update={"predict": predict}), dry_run=True).run
    assert runs["float32"] != runs["bfloat16"]
    assert runs["auto"] == runs[bundle.name]


def test_a_plan_on_a_cpu_that_emulates_bfloat16_says_so(
    bundle: Path, tmp_path: Path, cpu: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path, bundle)

    def warnings() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            segment(config, dry_run=True)
        return [message for message in caplog.messages if "emulated by the CPU" in message]

    assert warnings() == []
    cpu.write_text(EMULATING)
    assert len(warnings()) == (bundle.name == "bfloat16")
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert warnings() == [], "the cluster's machines are others"


def test_the_network_computes_in_it(bundle: Path, cpu: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rounded to 8 bits of mantissa: other confidences, by less than a few hundredths."""
    cpu.write_text(EMULATING)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    stored = load_bundle(str(bundle))
    found = {}
    for wanted in ("float32", "bfloat16"):
        with caplog.at_level(logging.WARNING):
            predictor = Predictor(stored, PredictConfig(), wanted)  # type: ignore[arg-type]
        (found[wanted],) = predictor.predict([image])
        assert ("emulated by the CPU" in caplog.text) is (wanted == "bfloat16")
    exact, rounded = found["float32"], found["bfloat16"]
    assert exact.mean_confidence != rounded.mean_confidence
    assert exact.mean_confidence == pytest.approx(rounded.mean_confidence, abs=0.03)
    # A graph rounds less often than its layers one by one: where two classes are level to a rounding the other may win.
    logits = np.asarray(stored.build("bfloat16")(_normalised(image), training=False))[0, :48, :64]
    won = np.take_along_axis(logits, rounded.mask[..., None].astype(np.intp), axis=-1)[..., 0]
    assert (logits.max(axis=-1) - won).max() <= np.abs(logits).max() * 2**-8
    assert np.mean(rounded.mask == logits.argmax(axis=-1)) >= 0.99


def _normalised(image: np.ndarray) -> np.ndarray:
    from fcn_ray.models.preprocessing import normalise

    return np.asarray(normalise(image[None], Preprocessing()))


def test_confidences_never_add_up_in_bfloat16(bundle: Path) -> None:
    """A sum in bfloat16 would stop at a few hundred pixels."""
    predict = compile_network(load_bundle(str(bundle)), 0, "bfloat16").predict
    size, core = np.array([[64, 64]], np.int32), np.array([[0, 0, 64, 64]], np.int32)
    masks, pixels, confidence = (np.asarray(part) for part in predict(np.zeros((1, 64, 64, 3), np.uint8), size, core))
    assert (masks.dtype, pixels.sum()) == (np.uint8, 64 * 64)
    assert np.can_cast(np.float32, confidence.dtype)
    assert 0.25 * 64 * 64 <= confidence.sum() <= 64 * 64
