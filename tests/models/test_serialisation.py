from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from fcn_ray.errors import BundleError
from fcn_ray.models.fcn import build_fcn
from fcn_ray.models.serialisation import assign_weights, dump_weights
from tests.networks import tiny_model, tiny_spec, weight_arrays

pytestmark = pytest.mark.keras


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def test_weights_survive_and_random_states_are_left_out(file: Path) -> None:
    model, other = tiny_model(), build_fcn(tiny_spec(), seed=3)
    data = dump_weights(model)
    assert safetensors.numpy.load(data).keys() == {weight.path for weight in model.weights}
    assert not any("seed" in name for name in safetensors.numpy.load(data))
    file.write_bytes(data)
    assign_weights(other, file, "w.safetensors")
    for name, array in weight_arrays(model).items():
        assert np.array_equal(array, weight_arrays(other)[name])


def test_weights_of_a_replicated_network_are_the_same_bytes() -> None:
    with tf.distribute.MirroredStrategy(["cpu:0"]).scope():
        replica = tiny_model()
    assert dump_weights(replica) == dump_weights(tiny_model())


def test_a_diverged_network_is_not_dumped() -> None:
    model = tiny_model()
    model.get_layer("fc7").bias.assign(np.full(6, np.inf))
    with pytest.raises(BundleError, match="fc7/bias is not finite"):
        dump_weights(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc6/bias": None}, r"missing \['fc6/bias'\]"),
        ({"extra/bias": np.zeros(1, np.float32)}, r"unknown \['extra/bias'\]"),
        ({"fc6/bias": np.zeros(7, np.float32)}, r"fc6/bias is float32 \(7,\), the spec needs float32 \(6,\)"),
        ({"fc6/bias": np.zeros(6, np.float64)}, r"fc6/bias is float64 \(6,\)"),
        ({"fc6/bias": np.full(6, np.nan, np.float32)}, "fc6/bias holds NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_set(
    change: dict[str, np.ndarray | None], message: str, file: Path
) -> None:
    model = tiny_model()
    before = weight_arrays(model)
    arrays = {name: np.asarray(array + 1) for name, array in before.items()} | change
    safetensors.numpy.save_file({name: array for name, array in arrays.items() if array is not None}, file)
    with pytest.raises(BundleError, match=f"^w.safetensors.*{message}"):
        assign_weights(model, file, "w.safetensors")
    assert all(np.array_equal(array, before[name]) for name, array in weight_arrays(model).items())


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\xff" * 100, bytes(100)])
def test_other_files_are_refused(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"w.safetensors is not a safetensors file"):
        assign_weights(tiny_model(), file, "w.safetensors")
