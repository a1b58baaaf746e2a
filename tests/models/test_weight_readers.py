"""Every kind of file gives the same arrays; what is broken, hostile or something else is refused by name."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy

from fcn_ray.errors import ConfigError
from fcn_ray.models import weight_readers
from fcn_ray.models.weight_readers import read_arrays

Arrays = dict[str, np.ndarray]
Write = Callable[[Path, Arrays], Any]

NAMES = {
    "keras 1": {"kernel": "{0}_W_1:0", "bias": "{0}_b_1:0", "gamma": "{0}_gamma:0"},
    "keras 2": {"kernel": "{0}/kernel:0", "bias": "{0}/bias:0", "gamma": "{0}/gamma:0"},
    "tensorflow 1": {"kernel": "{0}_2/kernel:0", "bias": "{0}_2/bias:0", "gamma": "{0}_2/gamma:0"},
    "scoped": {"kernel": "model/{0}/kernel:0", "bias": "model/{0}/bias:0", "gamma": "model/{0}/gamma:0"},
}
"""How the weights of layer {0} are called inside its group."""


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(3)
    shapes = {"a_conv/kernel": (3, 3, 3, 2), "a_conv/bias": (2,), "b_conv/kernel": (3, 3, 2, 1), "b_conv/bias": (1,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_legacy(path: Path, arrays: Arrays, style: str = "keras 2", root: str = "/", attributes: bool = True) -> None:
    layers = sorted({name.rpartition("/")[0] for name in arrays})
    with h5py.File(path, "w") as file:
        top = file.require_group(root)
        for layer in [*layers, "pool"]:
            group = top.require_group(layer)
            names = []
            for name in (name for name in arrays if name.rpartition("/")[0] == layer):
                names.append(NAMES[style][name.rpartition("/")[2]].format(layer))
                group[names[-1]] = arrays[name]
            if attributes:
                group.attrs["weight_names"] = np.array(names, "S")
        if attributes:
            top.attrs["layer_names"] = np.array([*layers, "pool"], "S")


def write_caffe(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            layer, variable = name.split("/")
            file[f"data/{layer}/{['kernel', 'bias'].index(variable)}"] = array
        file["diff/a_conv/0"] = np.zeros(1)


def write_keras(path: Path, arrays: Arrays, **changes: Any) -> None:
    """A Keras 3 archive, made by hand."""
    layers = sorted({name.rpartition("/")[0] for name in arrays})
    listed = [{"class_name": "Conv2D", "config": {"name": layer}} for layer in layers]
    config = {"class_name": "Functional", "config": {"layers": listed, "name": "net"}} | changes
    with h5py.File(path.with_suffix(".part"), "w") as file:
        for number, layer in enumerate(layers):
            group = "conv2d" + (f"_{number}" if number else "")
            file[f"layers/{group}/vars/0"] = arrays[f"{layer}/kernel"]
            file[f"layers/{group}/vars/1"] = arrays[f"{layer}/bias"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(path.with_suffix(".part"), "model.weights.h5")


WRITERS: dict[str, Write] = {
    ".npz": lambda path, arrays: np.savez(path, **arrays),
    ".safetensors": lambda path, arrays: safetensors.numpy.save_file(arrays, path),
    ".h5": write_legacy,
    ".keras": write_keras,
}


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# -------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_gives_the_same_arrays(tmp_path: Path, arrays: Arrays, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"w{suffix}", arrays)
    assert_equal(read_arrays(str(tmp_path / f"w{suffix}")), arrays)


@pytest.mark.parametrize("root", ["/", "/model_weights"])
@pytest.mark.parametrize("style", NAMES)
def test_names_in_legacy_files(tmp_path: Path, arrays: Arrays, style: str, root: str) -> None:
    write_legacy(tmp_path / "w.h5", arrays, style, root)
    assert_equal(read_arrays(str(tmp_path / "w.h5")), arrays)


@pytest.mark.parametrize("style", ["keras 1", "keras 2"])
def test_legacy_files_without_attributes(tmp_path: Path, arrays: Arrays, style: str) -> None:
    write_legacy(tmp_path / "w.hdf5", arrays, style, attributes=False)
    assert_equal(read_arrays(str(tmp_path / "w.hdf5")), arrays)


def test_names_with_slashes_as_mobilenetv3_was_published(tmp_path: Path) -> None:
    arrays = {"Conv/kernel": np.zeros((3, 3, 3, 2)), "Conv/BatchNorm/gamma": np.ones(2)}
    write_legacy(tmp_path / "w.h5", arrays)
    assert_equal(read_arrays(str(tmp_path / "w.h5")), arrays)


def test_long_lists_of_names_are_cut_into_parts(tmp_path: Path, arrays: Arrays) -> None:
    write_legacy(tmp_path / "w.h5", arrays)
    with h5py.File(tmp_path / "w.h5", "a") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:1], names[1:]
        file["junk/kernel"] = np.zeros(3)  # no layer: it is not listed
    assert_equal(read_arrays(str(tmp_path / "w.h5")), arrays)


def test_caffe_snapshot(tmp_path: Path, arrays: Arrays) -> None:
    write_caffe(tmp_path / "net.caffemodel.h5", arrays)
    numbered = {n.replace("kernel", "0").replace("bias", "1"): array for n, array in arrays.items()}
    assert_equal(read_arrays(str(tmp_path / "net.caffemodel.h5")), numbered)


@pytest.mark.keras
@pytest.mark.parametrize("name", ["w.keras", "w.h5", "w.weights.h5"])
@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_what_keras_itself_saves(tmp_path: Path, name: str, kind: str) -> None:
    import keras

    layers = [
        keras.layers.Conv2D(3, 3, name="first"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(6.0),
        keras.layers.DepthwiseConv2D(3, use_bias=False, name="each"),
        keras.layers.Conv2D(2, 1, use_bias=False, name="second"),
        keras.layers.BatchNormalization(name="norm_again"),
        keras.layers.Dropout(0.5),  # has a state: a whole number
        keras.layers.Lambda(lambda x: x * 2),  # has code, as bytes
        keras.layers.Conv2D(2, 1, trainable=False, name="frozen"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(4, name="scores"),
    ]
    if kind == "sequential":
        model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    else:
        x = inputs = keras.Input((8, 8, 3))
        for layer in layers:
            x = layer(x)
        model = keras.Model(inputs, x + 3.0)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    (model.save_weights if name == "w.weights.h5" else model.save)(tmp_path / name)
    # A Sequential's variables begin with its own name.
    expected = {"/".join(w.path.split("/")[-2:]): keras.ops.convert_to_numpy(w) for w in model.weights}
    assert_equal(read_arrays(str(tmp_path / name)), expected)


@pytest.mark.keras
def test_a_model_inside_a_model(tmp_path: Path) -> None:
    import keras

    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="a"), keras.layers.Conv2D(2, 3)])
    outer = keras.Sequential([inner, keras.layers.Flatten(), keras.layers.Dense(2, name="scores")])
    outer.save(tmp_path / "w.h5")
    assert {"a/kernel", "a/bias", "scores/kernel"} < read_arrays(str(tmp_path / "w.h5")).keys()
    outer.save(tmp_path / "w.keras")
    with pytest.raises(ConfigError, match=rf"it holds the model {inner.name} inside the model: save model.get_layer"):
        read_arrays(str(tmp_path / "w.keras"))


def test_no_class_of_an_archive_is_ever_made(tmp_path: Path, arrays: Arrays) -> None:
    path = tmp_path / "w.keras"
    write_keras(path, arrays, module="os", class_name="system", registered_name=f"touch {tmp_path}/harm")
    assert_equal(read_arrays(str(path)), arrays)
    write_keras(path, arrays, config={"name": "subclassed"})
    with pytest.raises(ConfigError, match="only Functional and Sequential models do"):
        read_arrays(str(path))
    assert not (tmp_path / "harm").exists()


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("harm", ["html", "empty", "cut", "cut at the start", "another kind"])
def test_broken_files_are_refused(tmp_path: Path, arrays: Arrays, suffix: str, harm: str) -> None:
    path = tmp_path / f"w{suffix}"
    WRITERS[suffix](path, arrays)
    data = path.read_bytes()
    if harm == "another kind":
        data = b"\x89PNG\r\n\x1a\n" + bytes(200)
    path.write_bytes(
        {
            "html": b"<!DOCTYPE html><title>Sign in</title>",
            "empty": b"",
            "cut": data[: len(data) // 2],
            "cut at the start": data[len(data) // 2 :],
        }.get(harm, data)
    )
    with pytest.raises(ConfigError, match=rf"w{suffix}: not a readable {suffix} file \(.*; give another file"):
        read_arrays(str(path))


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("w.keras", {"model.weights.h5": b""}),  # LookupError
        ("w.keras", {"config.json": b'{"config": {"layers": [1]}}'}),  # TypeError
        ("w.keras", {"config.json": b"[" * 100_000}),  # RecursionError
        ("w.keras", {"config.json": b"\xff"}),  # UnicodeDecodeError
        ("w.keras", {"config.json": b'{"config": {"layers": [{"class_name": "Conv2D", "config": {"name": "a"}}]}}'}),
        ("w.npz", {"a.npy": _npy("(1000000000000,)")}),  # MemoryError
        ("w.npz", {"a.npy": _npy(f"({2**70},)")}),  # OverflowError
        ("w.npz", {"a.npy": _npy("(3,)")}),  # ValueError
        ("w.npz", {"a.npy": _npy("(3,)")[:9]}),
    ],
)
def test_crafted_archives_are_refused(tmp_path: Path, name: str, members: dict[str, bytes]) -> None:
    with h5py.File(tmp_path / "part", "w") as file:
        file["layers/conv2d"] = np.zeros(3)  # no group: AttributeError
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        if "config.json" in members:
            archive.write(tmp_path / "part", "model.weights.h5")
    with pytest.raises(ConfigError, match=r"w.*: not a readable"):
        read_arrays(str(tmp_path / name))


def test_damaged_compression_is_refused(tmp_path: Path, arrays: Arrays) -> None:
    np.savez_compressed(tmp_path / "w.npz", **arrays)
    data = bytearray((tmp_path / "w.npz").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(ConfigError, match=r"not a readable .npz file \(Error -3 while decompressing"):
        read_arrays(str(tmp_path / "w.npz"))


def test_an_archive_that_ends_early_is_refused(tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")  # found with altered files

    np.savez(tmp_path / "w.npz", **arrays)
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(ConfigError, match=r"not a readable .npz file \(Compressed file ended"):
        read_arrays(str(tmp_path / "w.npz"))


def test_other_files_inside_an_npz_are_left_out(tmp_path: Path, arrays: Arrays) -> None:
    np.savez(tmp_path / "w.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as archive:
        archive.writestr("README", "where they come from")
    assert_equal(read_arrays(str(tmp_path / "w.npz")), arrays)


def test_pickles_in_an_npz_are_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    np.savez(tmp_path / "w.npz", **{"block1_conv1/kernel": np.array([Harm()], object)})
    with pytest.raises(ConfigError, match=r"w.npz: not a readable .npz file \(Object arrays cannot be loaded"):
        read_arrays(str(tmp_path / "w.npz"))
    with (tmp_path / "w.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ConfigError, match=r"not a readable .npz file"):
        read_arrays(str(tmp_path / "w.npz"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["w.npz", "w.keras"])
def test_archives_that_unpack_to_too_much_are_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"a_conv/kernel": np.zeros((3, 3, 300, 300), np.float32), "a_conv/bias": np.zeros(300, np.float32)}
    path = tmp_path / name
    if name == "w.npz":
        np.savez_compressed(path, **arrays)
    else:
        write_keras(tmp_path / "plain.keras", arrays)
        with (
            zipfile.ZipFile(tmp_path / "plain.keras") as plain,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        ):
            for member in plain.namelist():
                file.writestr(member, plain.read(member))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(weight_readers, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(np, "load", None)  # nothing may be unpacked
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(ConfigError, match=r"it holds 3,2\d\d,\d\d\d bytes, expected at most 1,000,000"):
        read_arrays(str(path))


def test_datasets_that_say_they_are_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for part in range(3):  # of as much as all of them may have: a limit for each would let them pass
            file.create_dataset(f"conv{part}/kernel", (500, 500), "f4", chunks=(500, 500), compression="gzip")
    assert (tmp_path / "w.h5").stat().st_size < 10_000
    monkeypatch.setattr(weight_readers, "MAX_BYTES", 1_000_000)
    with pytest.raises(ConfigError, match="it holds 3,000,000 bytes, expected at most 1,000,000"):
        read_arrays(str(tmp_path / "w.h5"))


def test_the_limit_lets_classifiers_through() -> None:
    vgg16_in_double_precision_with_a_momentum = 2 * 8 * 138_357_544
    assert vgg16_in_double_precision_with_a_momentum < weight_readers.MAX_BYTES < 2**33


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[".safetensors"](tmp_path / "w.safetensors", arrays)
    monkeypatch.setattr(weight_readers, "MAX_BYTES", 100)
    with pytest.raises(ConfigError, match="bytes, expected at most 100"):
        read_arrays(str(tmp_path / "w.safetensors"))


def test_an_hdf5_file_may_not_point_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((3, 3, 3, 2))
    (tmp_path / "secret.raw").write_bytes(bytes(16))

    def refuse(change: Callable[[h5py.Group], None], message: str, listed: bool = True) -> None:
        with h5py.File(tmp_path / "w.h5", "w") as file:
            change(file.create_group("conv"))
            if listed:
                file.attrs["layer_names"] = np.array(["conv"], "S")
                file["conv"].attrs["weight_names"] = np.array(["kernel"], "S")
        with pytest.raises(ConfigError, match=message):
            read_arrays(str(tmp_path / "w.h5"))

    def external_dataset(group: h5py.Group) -> None:
        group.create_dataset("kernel", (2,), "f8", external=[(str(tmp_path / "secret.raw"), 0, 16)])

    def virtual_dataset(group: h5py.Group) -> None:
        layout = h5py.VirtualLayout((3, 3, 3, 2), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "kernel", (3, 3, 3, 2))
        group.create_virtual_dataset("kernel", layout)

    refuse(lambda group: group.__setitem__("kernel", h5py.ExternalLink(str(secret), "kernel")), "kernel is a link")
    refuse(lambda group: group.__setitem__("kernel", h5py.SoftLink("/conv")), "kernel is a link")
    refuse(lambda group: group.__setitem__("kernel", group), "conv/kernel is no array of this file")
    refuse(lambda group: None, "kernel is missing")
    for listed in (True, False):
        refuse(external_dataset, "conv/kernel is no array of this file", listed)
        refuse(virtual_dataset, "conv/kernel is no array of this file", listed)


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["conv/kernel"] = np.array([b"text", b"more"])
    with pytest.raises(ConfigError, match=r"conv/kernel holds \|S4, expected numbers"):
        read_arrays(str(tmp_path / "w.h5"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.npz", "there is no such file"),
        ("weights", "expected a .npz, .h5, .keras or .safetensors file, or"),
        ("vgg16-397923af.pth", r"A pickle may run code: save it with safetensors.torch.save_file\(model.state_dict"),
        ("VGG_ILSVRC_16_layers.caffemodel", r"Save a Caffe network with net.save_hdf5"),
    ],
)
def test_what_is_not_read_is_named_with_the_way_out(tmp_path: Path, source: str, message: str) -> None:
    if "." in source and not source.startswith("nowhere"):
        (tmp_path / source).write_bytes(b"something")
    with pytest.raises(ConfigError, match=rf"model.weights .*{source}: .*{message}"):
        read_arrays(str(tmp_path / source))
