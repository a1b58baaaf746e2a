from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy

from fcn_ray import storage
from fcn_ray.bundle import Bundle, grow, load_bundle, save_bundle
from fcn_ray.config import CAFFE_PREPROCESSING, Preprocessing
from fcn_ray.errors import BundleError
from fcn_ray.labels import LabelSet
from fcn_ray.models import serialisation
from tests.networks import tiny_model, tiny_spec, weight_arrays

pytestmark = pytest.mark.keras

LABELS = LabelSet.from_names(["sky", "road", "car", "tree"])
METADATA = {"metrics": {"mean_iou": 0.5}, "data": {"uri": "train.parquet"}}


def save(folder: Path, model: Any = None, **changes: Any) -> Bundle:
    options = {"spec": tiny_spec(), "labels": LABELS, "preprocessing": CAFFE_PREPROCESSING, "metadata": METADATA}
    return save_bundle(str(folder), model or tiny_model(), **(options | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change model.json by hand."""
    content = json.loads((folder / "model.json").read_text())
    change(content)
    (folder / "model.json").write_text(json.dumps(content))


def swap_weights(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Other weights, with a digest that fits."""
    data = safetensors.numpy.save(arrays)
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, lambda content: content["weights"].update(sha256=storage.digest(data), bytes=len(data)))


# ------------------------------------------------------------------------------------------------------ round trip


def test_a_bundle_gives_the_same_network_back(tmp_path: Path) -> None:
    model = tiny_model()
    saved = save(tmp_path / "bundle", model)
    loaded = load_bundle(str(tmp_path / "bundle"))
    assert loaded == saved
    assert (loaded.spec, loaded.labels, loaded.preprocessing) == (tiny_spec(), LABELS, CAFFE_PREPROCESSING)
    assert loaded.metadata == METADATA
    x = np.random.default_rng(0).normal(size=(1, 40, 50, 3)).astype(np.float32)
    assert np.array_equal(model(x), loaded.build()(x))
    assert np.std(model(x)) > 0.01


def test_a_bundle_can_be_built_for_bfloat16(folder: Path) -> None:
    model = load_bundle(str(folder)).build("bfloat16")
    assert model.get_layer("fc6").compute_dtype == "bfloat16"
    assert str(model.get_layer("fc6").kernel.dtype) == "float32"


def test_no_weights_are_drawn_for_a_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For VGG16 it would take 5 s and 750 MB, and as long for any network on JAX, which compiles for each shape."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a kernel is drawn")

    monkeypatch.setattr(keras.initializers.HeNormal, "__call__", refuse)
    load_bundle(str(folder)).build()
    with pytest.raises(AssertionError, match="a kernel is drawn"):
        tiny_model()


def test_files_of_a_bundle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    assert "| mean_iou | 0.5 |" in (folder / "README.md").read_text()
    content = json.loads((folder / "model.json").read_text())
    assert content["labels"]["names"] == list(LABELS.names)
    assert content["versions"].keys() == {"fcn_ray", "python", "keras", "numpy", "safetensors"}


def test_loading_imports_no_keras(folder: Path) -> None:
    code = (
        "import sys; from fcn_ray.bundle import load_bundle; load_bundle(sys.argv[1]);"
        "assert not {'keras', 'tensorflow', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


# ---------------------------------------------------------------------------------------------------------- digest


def test_digest_names_the_network_and_not_its_story(tmp_path: Path) -> None:
    first = save(tmp_path / "a").digest
    assert len(first) == 64
    assert save(tmp_path / "b", metadata={}).digest == first
    others = [
        save(tmp_path / "c", tiny_model(seed=1)),
        save(tmp_path / "d", labels=LabelSet.from_names(["sky", "road", "car", "bush"])),
        save(tmp_path / "e", preprocessing=Preprocessing()),
        save(tmp_path / "f", spec=tiny_spec(dropout=0.1)),
    ]
    assert len({first, *(bundle.digest for bundle in others)}) == 5


def test_digest_of_an_old_bundle_outlives_new_settings(folder: Path) -> None:
    """A key that model.json does not hold, because it was not there then, does not count."""
    edit(folder, lambda content: (content["spec"].pop("dropout"), content.pop("checksum")))
    digest = load_bundle(str(folder)).digest
    edit(folder, lambda content: content["spec"].update(dropout=0.5))
    assert load_bundle(str(folder)).digest != digest


# ---------------------------------------------------------------------------------------------------------- saving


def test_saving_the_same_network_again_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = save(folder, metadata={"metrics": {"mean_iou": 0.9}})
    assert again == load_bundle(str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_network_is_never_written_over(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BundleError, match=r"holds another bundle .*choose another folder"):
        save(folder, tiny_model(seed=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_interrupted_save_is_finished_by_the_same_network_only(folder: Path) -> None:
    (folder / "model.json").unlink()
    with pytest.raises(BundleError, match=r"model.safetensors holds other weights .*delete it"):
        save(folder, tiny_model(seed=1))
    assert save(folder) == load_bundle(str(folder))


def test_a_bundle_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model.json is written last: until then there is no bundle."""

    def fail(uri: str, data: bytes) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(storage, "replace", fail)  # the write between the weights and model.json
    with pytest.raises(OSError, match="full"):
        save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(str(tmp_path / "bundle"))


def test_a_race_for_one_folder_is_lost_politely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def somebody_else_is_quicker(uri: str, data: bytes) -> None:
        monkeypatch.undo()
        save(tmp_path / "bundle", preprocessing=Preprocessing())

    monkeypatch.setattr(storage, "replace", somebody_else_is_quicker)
    with pytest.raises(BundleError, match="holds another bundle"):
        save(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": tiny_spec(num_classes=5)}, "the network has 4 classes, its spec 5"),
        ({"labels": LabelSet.from_names(["sky", "road"])}, "2 class names for spec.num_classes 4"),
        ({"metadata": {"loss": float("nan")}}, "metadata cannot be stored as JSON"),
        ({"metadata": {"when": object()}}, "metadata cannot be stored as JSON"),
        ({"preprocessing": Preprocessing(std=(1, 0, 1))}, "divide by no zero"),
    ],
)
def test_what_does_not_belong_together_is_not_saved(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        save(tmp_path / "bundle", **changes)
    assert not (tmp_path / "bundle").exists()


# --------------------------------------------------------------------------------------------------------- defects


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


DEFECTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no model.json": (lambda f: (f / "model.json").unlink(), r"model.json does not exist"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors does not exist"),
    "web page": (lambda f: (f / "model.json").write_text("<!DOCTYPE html>"), r"is not JSON, it begins with .*DOCTYPE"),
    "empty": (lambda f: (f / "model.json").write_text(""), "is not JSON"),
    "a list": (lambda f: (f / "model.json").write_text("[]"), "the whole = "),
    "huge": (lambda f: (f / "model.json").write_bytes(b" " * 10_000_001), "has 10000001 bytes, more than"),
    "one bit": (flip_a_bit, r"model.safetensors has sha256 .*get the bundle again"),
    "cut short": (lambda f: (f / "model.safetensors").write_bytes(b"abc"), r"has 3 bytes, model.json says \d+"),
    "unknown key": (lambda f: edit(f, lambda c: c["spec"].update(code="x.py")), r"spec.code: unknown key"),
    "unknown section": (lambda f: edit(f, lambda c: c.update(module="os")), r"module: unknown key"),
    "missing key": (lambda f: edit(f, lambda c: c.pop("labels")), r"labels: required, but not there"),
    "other format": (lambda f: edit(f, lambda c: c.update(format="fcn_ray.bundle/9")), r"format = fcn_ray.bundle/9"),
    "other backbone": (lambda f: edit(f, lambda c: c["spec"].update(backbone="eval")), r"spec.backbone = eval"),
    "text for a number": (lambda f: edit(f, lambda c: c["spec"].update(num_classes="4")), r"spec.num_classes = 4"),
    "class count": (
        lambda f: edit(f, lambda c: c["spec"].update(num_classes=5)),
        "4 class names for spec.num_classes 5",
    ),
    "colour": (lambda f: edit(f, lambda c: c["labels"]["palette"].__setitem__(0, [0, 0, 256])), r"palette.0.2 = 256"),
    "same names": (lambda f: edit(f, lambda c: c["labels"].update(names=["a"] * 4)), "class names must differ"),
    "zero std": (lambda f: edit(f, lambda c: c["preprocessing"].update(std=[1, 0, 1])), "divide by no zero"),
    "colour changed": (lambda f: edit(f, lambda c: c["labels"]["palette"].reverse()), "its checksum does not fit"),
    "metric changed": (lambda f: edit(f, lambda c: c["metadata"].clear()), "its checksum does not fit"),
    "nan mean": (lambda f: edit(f, lambda c: c["preprocessing"].update(mean=[1, 2, float("nan")])), "must be finite"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_refused_by_name(folder: Path, defect: str) -> None:
    break_it, message = DEFECTS[defect]
    break_it(folder)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(str(folder))
    assert str(folder) in str(caught.value)


def test_weights_that_change_after_loading_are_refused(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    flip_a_bit(folder)
    with pytest.raises(BundleError, match="changed after the bundle was loaded"):
        bundle.build()


def test_weights_that_change_while_they_are_read_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, assign = load_bundle(str(folder)), serialisation.assign_weights

    def change(*given: Any) -> None:
        assign(*given)
        flip_a_bit(folder)

    monkeypatch.setattr(serialisation, "assign_weights", change)
    with pytest.raises(BundleError, match="changed after the bundle was loaded"):
        bundle.build()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    arrays = weight_arrays(tiny_model())
    swap_weights(folder, arrays | {"fc7/bias": np.full_like(arrays["fc7/bias"], value)})
    bundle = load_bundle(str(folder))
    with pytest.raises(BundleError, match=r"model.safetensors: fc7/bias holds NaN or infinite"):
        bundle.build()


def test_a_network_that_answers_no_numbers_is_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    for layer in model.layers:
        layer.set_weights([np.full(w.shape, 1e30, np.float32) for w in layer.get_weights()])
    with pytest.raises(BundleError, match="does not answer a drawn picture with numbers"):
        save(tmp_path / "bundle", model)
    assert not (tmp_path / "bundle" / "model.json").exists()


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    swap_weights(folder, weight_arrays(tiny_model(tiny_spec(fc_channels=7))))
    bundle = load_bundle(str(folder))
    with pytest.raises(BundleError, match=r"fc6/kernel is float32 .*7\), the spec needs float32 .*6\)"):
        bundle.build()


def test_a_coarse_bundle_grows_into_a_finer_network(tmp_path: Path) -> None:
    spec = tiny_spec(variant="32s")
    bundle = save(tmp_path / "coarse", tiny_model(spec), spec=spec)
    model, finer = grow(bundle, "16s")
    assert (finer.variant, model.name) == ("16s", "fcn16s_vgg16")
    kernels = [found.get_layer("fc6").get_weights()[0] for found in (model, bundle.build())]
    assert np.array_equal(*kernels)
    assert not model.get_layer("score_pool4").get_weights()[0].any()


# ------------------------------------------------------------------------------------------------------- precision


def test_what_a_network_was_validated_in_is_kept_and_is_no_part_of_its_digest(tmp_path: Path) -> None:
    exact, rounded = save(tmp_path / "a"), save(tmp_path / "b", precision="bfloat16")
    assert (exact.precision, rounded.precision) == ("float32", "bfloat16")
    assert load_bundle(str(tmp_path / "b")) == rounded
    assert exact.digest == rounded.digest


def test_a_bundle_from_before_there_was_a_choice_is_float32(folder: Path) -> None:
    def remove(content: dict[str, Any]) -> None:
        del content["precision"], content["checksum"]

    edit(folder, remove)
    assert load_bundle(str(folder)).precision == "float32"


def test_another_precision_is_refused(folder: Path) -> None:
    edit(folder, lambda content: content.update(precision="float16"))
    with pytest.raises(BundleError, match="precision = float16"):
        load_bundle(str(folder))
