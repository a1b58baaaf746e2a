from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from fcn_ray.errors import ConfigError
from fcn_ray.models.fcn import build_fcn
from fcn_ray.models.weights import MAGNITUDES, load_backbone_weights
from tests.networks import tiny_model, tiny_spec, weight_arrays

pytestmark = pytest.mark.keras

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """Backbone of another tiny network, with biases that are not zero."""
    return {name: array for name, array in weight_arrays(tiny_model(seed=9)).items() if name.startswith("block")}


def write_npz(path: Path, arrays: Arrays, dtype: str = "float32") -> str:
    np.savez(path, **{name: array.astype(dtype) for name, array in arrays.items()})
    return str(path)


def write_h5(path: Path, arrays: Arrays, style: str, root: str) -> str:
    """The two layouts in which keras-applications has published weights."""
    names = {
        "old": {"kernel": "{0}_W_1:0", "bias": "{0}_b_1:0"},
        "new": {"kernel": "{0}/kernel:0", "bias": "{0}/bias:0"},
    }[style]
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            layer, kind = name.split("/")
            file[f"{root}/{layer}/{names[kind].format(layer)}"] = array
        file.require_group(f"{root}/block1_pool")
    return str(path)


def assert_loaded(model: keras.Model, arrays: Arrays, **tolerance: float) -> None:
    found = weight_arrays(model)
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array, err_msg=name, **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npz(tmp_path: Path, arrays: Arrays, dtype: str) -> None:
    model = build_fcn(tiny_spec())
    head = {name: array for name, array in weight_arrays(model).items() if name.startswith(("fc", "score"))}
    names = load_backbone_weights(model, write_npz(tmp_path / "w.npz", arrays, dtype))
    assert_loaded(model, arrays, **({"atol": 2e-3} if dtype == "float16" else {"atol": 0}))
    assert_loaded(model, head, atol=0)
    assert (names[0], names[-1], len(names)) == ("block1_conv1", "block5_conv3", 13)


@pytest.mark.parametrize("root", ["/", "/model_weights"])
@pytest.mark.parametrize("style", ["old", "new"])
def test_h5(tmp_path: Path, arrays: Arrays, style: str, root: str) -> None:
    model = build_fcn(tiny_spec())
    load_backbone_weights(model, write_h5(tmp_path / "w.h5", arrays, style, root))
    assert_loaded(model, arrays, atol=0)


def test_levels_are_scaled_to_about_one(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec())
    names = ["scale_pool3/factor", "scale_pool4/factor", "scale_pool5/factor"]
    assert [weight_arrays(model)[name] for name in names] == [1, 1, 1]
    load_backbone_weights(model, write_npz(tmp_path / "w.npz", arrays))
    assert [weight_arrays(model)[name] for name in names] == [1 / 512, 1 / 128, 1 / 8]
    assert {name.split("/")[0] for name in names} == MAGNITUDES.keys()


def test_imagenet_comes_from_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = keras.applications.VGG16(include_top=False, weights=None)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(keras.applications, "VGG16", lambda **options: asked.update(options) or theirs)
    model = build_fcn(tiny_spec(width=1.0))
    assert load_backbone_weights(model, "imagenet") == [layer.name for layer in theirs.layers if layer.weights]
    assert asked == {"include_top": False, "weights": "imagenet"}
    assert_loaded(model, weight_arrays(theirs), atol=0)


def test_without_a_network_imagenet_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise Exception("URL fetch failure on https://example.org")

    monkeypatch.setattr(keras.applications, "VGG16", fail)
    with pytest.raises(ConfigError, match=r"URL fetch failure.*local .npz or .h5 file"):
        load_backbone_weights(tiny_model(), "imagenet")


def test_another_width_is_refused_with_both_shapes(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec(width=0.1))
    before = weight_arrays(model)
    message = r"block1_conv1/kernel has shape \(3, 3, 3, 1\), the network needs \(3, 3, 3, 6\).*model.width 1.0"
    with pytest.raises(ConfigError, match=message):
        load_backbone_weights(model, write_npz(tmp_path / "w.npz", arrays))
    assert_loaded(model, before, atol=0)


def test_a_missing_layer_is_named_and_nothing_is_set(tmp_path: Path, arrays: Arrays) -> None:
    model = build_fcn(tiny_spec())
    before = weight_arrays(model)
    part = {name: array for name, array in arrays.items() if name != "block5_conv3/bias"}
    with pytest.raises(ConfigError, match=r"w.npz: block5_conv3/bias is missing; found 25 arrays"):
        load_backbone_weights(model, write_npz(tmp_path / "w.npz", part))
    assert_loaded(model, before, atol=0)


def test_nan_is_refused(tmp_path: Path, arrays: Arrays) -> None:
    bad = arrays | {"block3_conv1/bias": np.full_like(arrays["block3_conv1/bias"], np.nan)}
    with pytest.raises(ConfigError, match="block3_conv1/bias holds NaN"):
        load_backbone_weights(tiny_model(), write_npz(tmp_path / "w.npz", bad))


@pytest.mark.parametrize("name", ["html.npz", "cut.npz", "array.npz", "pickle.npz", "html.h5", "cut.h5"])
def test_broken_files_are_refused(tmp_path: Path, arrays: Arrays, name: str) -> None:
    path = tmp_path / name
    if name.startswith("html"):
        path.write_text("<!DOCTYPE html><title>Sign in</title>")
    elif name == "array.npz":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif name == "pickle.npz":
        np.savez(path, **{"block1_conv1/kernel": np.array([{"a": 1}], object)})
    else:
        write_npz(path, arrays) if name.endswith("npz") else write_h5(path, arrays, "new", "/")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=rf"{name}: not a readable .{name.split('.')[1]} file"):
        load_backbone_weights(tiny_model(), str(path))


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.npz", "there is no such file"), ("weights.pt", "expected a .npz or .h5 file")],
)
def test_wrong_names_are_refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{source}: {message}"):
        load_backbone_weights(tiny_model(), source)
