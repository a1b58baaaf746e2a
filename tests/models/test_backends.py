"""The same networks on TensorFlow and on JAX, which is installed for this: equal logits, losses, masks and figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_ray.models.backbones import BACKBONES
from tests.models.backends import NETWORKS
from tests.networks import tiny_spec

pytestmark = [pytest.mark.jax, pytest.mark.keras, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]

REQUIREMENTS = ("jax==0.10.2", "jaxlib==0.10.2", "scipy==1.17.1")
"""For all our Pythons, with what else JAX needs as locked: numpy, ml_dtypes and opt_einsum."""

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    """What TensorFlow found, and JAX on the same weights."""
    folder, packages = tmp_path_factory.mktemp("outcomes"), tmp_path_factory.mktemp("packages")
    first = _start(folder, KERAS_BACKEND="tensorflow")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*install, "--no-deps", "--target", str(packages), *REQUIREMENTS], check=True)
    _finish(first)
    # Compiling is what takes its time: with fewer optimisations a third less.
    jax = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(packages)}
    _finish(_start(folder, KERAS_BACKEND="jax", **jax))
    return _load(folder / "tensorflow.npz"), _load(folder / "jax.npz")


def _start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """On the CPU: GPUs round to fewer bits."""
    command = [sys.executable, "-m", "tests.models.backends", str(folder)]
    settings = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"} | environment
    return subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


def _load(file: Path) -> Outcome:
    with np.load(file) as arrays:
        return dict(arrays)


def _both(outcomes: tuple[Outcome, Outcome], end: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What both found under the names with this `end`."""
    tensorflow, jax = outcomes
    assert tensorflow.keys() == jax.keys()
    pairs = {name: (tensorflow[name], jax[name]) for name in tensorflow if name.endswith(end)}
    assert pairs
    return pairs


def test_each_ran_on_its_backend_and_without_the_other(outcomes: tuple[Outcome, Outcome]) -> None:
    for outcome, name, other in zip(outcomes, ("tensorflow", "jax"), ("jax", "tensorflow"), strict=True):
        assert outcome["backend"] == name
        assert name in outcome["modules"]
        assert other not in outcome["modules"]
        assert "ray" not in outcome["modules"]


def test_the_selection_has_every_kind_of_network() -> None:
    specs = [tiny_spec(**changes) for changes in NETWORKS.values()]
    for field, known in {
        "backbone": set(BACKBONES),
        "variant": {"32s", "16s", "8s"},
        "fusion": {"sum", "concat"},
        "upsampling": {"bilinear", "deconv_fixed", "deconv_learned"},
        "geometry": {"same", "paper"},
        "output_stride": {32, 16},
    }.items():
        assert {getattr(spec, field) for spec in specs} == known


def test_logits_are_the_same(outcomes: tuple[Outcome, Outcome]) -> None:
    pairs = _both(outcomes, "/logits")
    assert {f"networks/{name}/logits" for name in NETWORKS} < pairs.keys()
    for name, (expected, found) in pairs.items():
        assert found.dtype == expected.dtype == np.float32
        assert expected.std() > 0.01 or expected.size == 4, name
        assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max()), name


def test_masks_are_the_same_whole_and_in_tiles(outcomes: tuple[Outcome, Outcome]) -> None:
    pairs = _both(outcomes, "/mask")
    for name, (expected, found) in pairs.items():
        assert len(np.unique(expected)) > 1, name
        assert (found == expected).mean() >= 0.9999, name
    for whole, tiles in zip(pairs["predictor/whole/mask"], pairs["predictor/tiles/mask"], strict=True):
        assert (whole == tiles).mean() >= 0.9999
    for name, (expected, found) in _both(outcomes, "/confidence").items():
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("end", ["/terms", "/loss"])
def test_losses_are_the_same(outcomes: tuple[Outcome, Outcome], end: str) -> None:
    for name, (expected, found) in _both(outcomes, end).items():
        assert found.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "end",
    ["/same bytes", "/multiply-adds", "/receptive field", "/halo", "/class pixels", "/variant", "/layers", "/digest"],
)
def test_what_is_counted_named_or_stored_is_equal(outcomes: tuple[Outcome, Outcome], end: str) -> None:
    """Weights that went through JAX are the same bytes: a bundle keeps its digest whoever saves it."""
    for name, (expected, found) in _both(outcomes, end).items():
        assert np.array_equal(found, expected), name
        assert end != "/same bytes" or found, name


def test_actors_on_jax_can_share_a_device(outcomes: tuple[Outcome, Outcome]) -> None:
    """JAX would take three quarters of its memory for the first."""
    assert outcomes[1]["preallocates"] == "false"
