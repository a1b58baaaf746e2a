from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from fcn_ray.bundle import load_bundle, save_bundle
from fcn_ray.config import CAFFE_PREPROCESSING, ModelSpec, Preprocessing
from fcn_ray.errors import BundleError, ConfigError, FcnRayError, ForeignOutputError, StorageError
from fcn_ray.inference import export as export_module
from fcn_ray.inference import export_formats
from fcn_ray.inference.export import compare_logits, export
from fcn_ray.inference.export_formats import WRITERS, write_onnx
from fcn_ray.labels import LabelSet
from fcn_ray.models import fcn
from fcn_ray.models.fcn import take_raw_images
from tests.networks import tiny_model, tiny_spec

pytestmark = [pytest.mark.keras, pytest.mark.timeout(600)]

LABELS = LabelSet.from_names(["sky", "road", "käfer", "car"])
UNEVEN = Preprocessing(mean=(110.0, 120.0, 130.0), std=(60.0, 50.0, 70.0))

NETWORKS: dict[str, tuple[ModelSpec, Preprocessing]] = {
    "vgg16": (tiny_spec(), CAFFE_PREPROCESSING),
    "alexnet": (tiny_spec(backbone="alexnet", geometry="paper", upsampling="deconv_fixed"), UNEVEN),
    "mobilenet": (
        tiny_spec(backbone="mobilenetv3_small", variant="16s", fusion="concat", upsampling="deconv_learned"),
        UNEVEN,
    ),
}
ENDINGS = {"keras": ".keras", "onnx": ".onnx", "savedmodel": ""}
ABOUT = {"names": list(LABELS.names), "palette": [list(colour) for colour in LABELS.palette], "ignore_id": 255}

SIZES = [(1, 2, 3), (2, 31, 97), (1, 70, 50)]
IMAGES = [np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.float32) for size in SIZES]

# Ways to load that are not those of export_check.py.
LOADERS = {
    "keras": "import fcn_ray.models.fcn, keras\n"
    "def load(path): return keras.saving.load_model(path, compile=False)\n"
    "def apply(model, images): return model.predict_on_batch(images)",
    "savedmodel": "import tensorflow as tf\n"
    "def load(path): return tf.saved_model.load(path)\n"
    "def apply(model, images): return model.serve(images)['logits']",
    "onnx": "import onnxruntime\n"
    "def load(path): return onnxruntime.InferenceSession(path)\n"
    "def apply(model, images): return model.run(None, {model.get_inputs()[0].name: images})[0]",
}
APPLY_ALL = """
import sys, pathlib
import numpy as np
{loader}
folder = pathlib.Path(sys.argv[1])
images = np.load(folder / "images.npz")
found = {{}}
for path in map(pathlib.Path, sys.argv[2:]):
    model = load(str(path))
    found |= {{f"{{path.stem}}/{{name}}": np.asarray(apply(model, images[name])) for name in images.files}}
np.savez(folder / "found.npz", **found)
print("fcn_ray" in sys.modules)
"""


def _normalised(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    turned = images if preprocessing.channels == "RGB" else images[..., ::-1]
    return (turned - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)


@pytest.fixture(scope="module")
def models() -> dict[str, keras.Model]:
    return {name: tiny_model(spec) for name, (spec, _) in NETWORKS.items()}


@pytest.fixture(scope="module")
def bundle(models: dict[str, keras.Model], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("bundle") / "vgg16")
    spec, preprocessing = NETWORKS["vgg16"]
    save_bundle(folder, models["vgg16"], spec, LABELS, preprocessing, {})
    return folder


@pytest.fixture(scope="module")
def exports(
    models: dict[str, keras.Model], bundle: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Files by format: vgg16 by the whole job, the others as it writes them."""
    folder = tmp_path_factory.mktemp("exports")
    paths = {kind: [folder / f"{name}{end}" for name in NETWORKS] for kind, end in ENDINGS.items()}
    paths["savedmodel"] = paths["savedmodel"][:2]  # the same graph as in ONNX, and nothing is converted
    for kind, files in paths.items():
        report = export(bundle, str(files[0]))
        assert (report.format, report.bytes > 10_000) == (kind, True)
        assert report.difference <= report.limit
        for file in files[1:]:
            WRITERS[kind](take_raw_images(models[file.stem], NETWORKS[file.stem][1]), file, ABOUT)
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for files in paths.values() for p in files)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDINGS)
def test_other_programs_get_the_logits_of_the_network(
    kind: str, exports: dict[str, list[Path]], models: dict[str, keras.Model], tmp_path: Path
) -> None:
    np.savez(tmp_path / "images.npz", *IMAGES)
    code = APPLY_ALL.format(loader=LOADERS[kind])
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *map(str, exports[kind])],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(kind == "keras")  # the others need no code of ours
    found = np.load(tmp_path / "found.npz")
    for path in exports[kind]:
        for index, images in enumerate(IMAGES):
            logits = found[f"{path.stem}/arr_{index}"]
            expected = np.asarray(models[path.stem](_normalised(images, NETWORKS[path.stem][1]), training=False))
            assert logits.dtype == np.float32
            assert logits.shape == (*images.shape[:3], 4)
            np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max() / 10), rtol=0)


@pytest.mark.slow
def test_classes_go_along(exports: dict[str, list[Path]], bundle: str) -> None:
    import onnx

    archive = zipfile.ZipFile(exports["keras"][0])
    of_keras = json.loads(archive.read("labels.json"))
    assert of_keras | ABOUT == of_keras
    assert of_keras["digest"] == load_bundle(bundle).digest
    assert json.loads((exports["savedmodel"][0] / "assets.extra" / "labels.json").read_text("utf-8")) == of_keras
    proto = onnx.load(exports["onnx"][0])
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata.keys() == of_keras.keys()
    assert (json.loads(metadata["names"]), metadata["digest"]) == (ABOUT["names"], of_keras["digest"])
    for value, name, last in ((proto.graph.input[0], "image", 3), (proto.graph.output[0], "logits", 4)):
        shape = [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        assert (value.name, shape) == (name, ["batch", "height", "width", last])


@pytest.mark.slow
def test_the_onnx_file_means_the_same_to_another_interpreter(
    exports: dict[str, list[Path]], models: dict[str, keras.Model]
) -> None:
    from onnx.reference import ReferenceEvaluator

    (found,) = ReferenceEvaluator(str(exports["onnx"][0])).run(None, {"image": IMAGES[0]})
    expected = np.asarray(models["vgg16"](_normalised(IMAGES[0], CAFFE_PREPROCESSING), training=False))
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max() / 10), rtol=0)


@pytest.mark.slow
def test_the_fresh_process_refuses_help_from_our_code(exports: dict[str, list[Path]], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import fcn_ray")
    np.savez(tmp_path / "images.npz", IMAGES[0])
    script = Path(export_module.__file__).with_name("export_check.py")
    files = [exports["onnx"][0], tmp_path / "images.npz", tmp_path / "logits.npz"]
    path = os.pathsep.join([str(tmp_path), str(script.parents[2])])
    run = subprocess.run(
        [sys.executable, "-P", str(script), "onnx", *map(str, files)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "onnx was loaded with the help of fcn_ray, which it must not need"


def test_kernels_do_not_pass_through_the_converter_that_copies_them(
    models: dict[str, keras.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf
    import tf2onnx

    def convert(function: object, signature: list[tf.TensorSpec]) -> None:
        raise InterruptedError(sum(spec.shape.num_elements() for spec in signature[1:]))

    monkeypatch.setattr(tf2onnx.convert, "from_function", convert)
    with pytest.raises(InterruptedError) as stopped:
        write_onnx(take_raw_images(models["vgg16"], UNEVEN), tmp_path / "m.onnx", ABOUT)
    kernels = [weight for weight in models["vgg16"].weights if weight.path.endswith("kernel")]
    assert stopped.value.args == (sum(math.prod(kernel.shape) for kernel in kernels),)


def test_a_keras_file_asks_no_backend_for_what_only_tensorflow_has(
    models: dict[str, keras.Model], tmp_path: Path
) -> None:
    WRITERS["keras"](take_raw_images(models["mobilenet"], UNEVEN), tmp_path / "m.keras", ABOUT)
    config = zipfile.ZipFile(tmp_path / "m.keras").read("config.json").decode()
    assert '"synchronized": false' in config
    assert '"synchronized": true' not in config


def test_logits_that_differ_are_an_error_with_the_figures_and_nothing_is_left(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Preprocessing(channels="BGR", mean=(103.0, 116.0, 124.0), std=(1.0, 1.0, 1.0))
    monkeypatch.setattr(fcn, "take_raw_images", lambda model, _: take_raw_images(model, other))
    with pytest.raises(FcnRayError, match=r"differ from the bundle's by \d.*, the limit is \d.* for logits up to \d"):
        export(bundle, str(tmp_path / "street.keras"))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_a_fresh_process_cannot_use_is_not_left(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export_formats.WRITERS, "onnx", lambda model, path, about: path.write_bytes(b"nonsense"))
    with pytest.raises(FcnRayError, match=r"not written: a fresh process could not use the onnx network: .*Protobuf"):
        export(bundle, str(tmp_path / "street.onnx"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS.values())
def test_what_is_there_is_never_overwritten(bundle: str, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"street{ending}"
    out.write_text("mine")
    with pytest.raises(ForeignOutputError, match="is there already, and an export overwrites nothing"):
        export(bundle, str(out))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(out.name, "mine")]


@pytest.mark.parametrize("as_folder", [True, False])
def test_nor_is_what_comes_meanwhile(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_folder: bool
) -> None:
    out = tmp_path / "street"

    def write(model: object, path: Path, about: object) -> None:
        if as_folder:
            path.mkdir()
            (path / "theirs").write_text("1")
        else:
            path.write_text("1")

    def someone_else(*arguments: object) -> tuple[float, float]:
        write(None, out, None)
        return 0.0, 1.0

    monkeypatch.setitem(export_formats.WRITERS, "savedmodel", write)
    monkeypatch.setattr(export_module, "_apply_elsewhere", lambda *arguments: [])
    monkeypatch.setattr(export_module, "compare_logits", someone_else)
    with pytest.raises(ForeignOutputError, match="is there already"):
        export(bundle, str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["street"]


@pytest.mark.parametrize("missing", ["tf2onnx", "onnxruntime"])
def test_onnx_without_its_packages_names_the_extra(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf'needs {missing}, not installed here: pip install "fcn_ray\[onnx\]"'):
        export(bundle, str(tmp_path / "new" / "street.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_another_backend_is_refused(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="KERAS_BACKEND=tensorflow, found jax"):
        export(bundle, str(tmp_path / "street.keras"))


@pytest.mark.parametrize(
    ("out", "format", "message"),
    [
        ("street.h5", None, r"no format has the suffix \.h5; expected \.keras, \.onnx, or none"),
        ("street.bin", "keras", r"Keras loads only files that end in \.keras"),
        ("street", "torch", "expected one of keras, onnx, savedmodel"),
    ],
)
def test_names_that_no_format_has_are_refused(tmp_path: Path, out: str, format: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export("nowhere", str(tmp_path / out), format=format)


def test_a_format_that_is_given_takes_any_name(tmp_path: Path) -> None:
    for out, kind in (("a.b", "savedmodel"), ("a.keras", "onnx"), ("a", "onnx")):
        with pytest.raises(BundleError):  # the name is no reason any more
            export("nowhere", str(tmp_path / out), format=kind)


def test_storage_that_refuses_says_so(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        export(bundle, str(tmp_path / "file" / "street.keras"))


def test_the_limit_grows_with_logits_that_float32_cannot_tell_apart() -> None:
    small, large = [np.float32([[1, -9]])], [np.float32([[1, -3000]])]
    assert compare_logits(small, small, "out") == (0.0, 1e-4)
    assert compare_logits(large, large, "out") == (0.0, pytest.approx(0.03))
    for logits, step in ((small, 2e-4), (large, 0.05), (small, np.nan)):
        with pytest.raises(FcnRayError, match="out is not written: its logits differ"):
            compare_logits([logits[0] + np.float32(step)], logits, "out")


@pytest.mark.parametrize("found", [np.zeros((1, 2), np.float64), np.zeros((2, 1), np.float32)])
def test_logits_of_another_kind_are_no_match(found: np.ndarray) -> None:
    with pytest.raises(FcnRayError, match="out is not written: its logits are"):
        compare_logits([found], [np.zeros((1, 2), np.float32)], "out")


def test_what_no_onnx_file_holds_is_refused(tmp_path: Path) -> None:
    huge = SimpleNamespace(weights=[SimpleNamespace(shape=(1000, 1000, 600))])
    with pytest.raises(ConfigError, match=r"2,400,000,000 bytes of weights.*export a SavedModel"):
        write_onnx(huge, tmp_path / "huge.onnx", {})
