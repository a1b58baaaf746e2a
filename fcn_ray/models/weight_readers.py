"""Arrays from weight files: .npz, .h5, .keras and .safetensors, under the names that the file gives them.

No Keras here, so that the driver reads a file before the cluster is touched; and nothing in a file is ever run: no
pickle, no class path, no link to another file. What the names mean: fcn_ray.models.weight_files.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import h5py
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from fcn_ray import storage
from fcn_ray.errors import ConfigError

RawArrays = dict[str, NDArray[Any]]
"""Arrays by name, in the file's own names, orders and dtypes."""

MAX_BYTES = 4_000_000_000
"""Of a file, and of all that it says it unpacks to. VGG16 with its dense layers is 553 MB, 1.7 GB with Adam's state."""

MAX_RATIO, FREE_BYTES = 50, 100_000_000
"""Weights hardly compress. A file that says that it unpacks to more than so many times its size, and to more than a
little, is a bomb."""

NORMALISATION = ("gamma", "beta", "moving_mean", "moving_variance")
"""Variables of keras.layers.BatchNormalization, in the order in which every Keras stores them."""

PICKLES = {"pt", "pth", "bin", "pkl", "ckpt", "tar"}
BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    safetensors.SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the libraries raise for files that are cut off, altered, or something else.

Of 8,000 files altered at random none raised anything else; 3 kept the HDF5 library busy for ever.
"""


def read_arrays(source: str) -> RawArrays:
    """All arrays of the file `source`.

    Raises ConfigError that names the file when there is none, when its kind is not read, and when it is broken.
    """
    suffix = source.rsplit(".", 1)[-1].lower()
    if suffix not in READERS:
        raise ConfigError(f"model.weights {source}: {_advice(suffix)}")
    if not storage.is_file(source):
        raise ConfigError(f"model.weights {source}: there is no such file")
    with storage.open_file(source) as file:
        try:
            _check_size([storage.stat(source).size], file)
            return READERS[suffix](file)
        except BROKEN as error:
            raise ConfigError(
                f"model.weights {source}: not a readable .{suffix} file ({str(error)[:300]}); give another file"
            ) from error


def _advice(suffix: str) -> str:
    expected = 'expected a .npz, .h5, .keras or .safetensors file, or "imagenet"'
    if suffix in PICKLES:
        return f"{expected}. A pickle may run code: save it with safetensors.torch.save_file(model.state_dict(), ...)"
    if suffix == "caffemodel":
        return f"{expected}. Save a Caffe network with net.save_hdf5(...)"
    return expected


def _read_npz(file: BinaryIO) -> RawArrays:
    with zipfile.ZipFile(file) as archive:
        _check_size((info.file_size for info in archive.infolist()), file)
    file.seek(0)
    with np.load(file, allow_pickle=False) as npz:
        # What is not .npy inside comes out as bytes.
        return {name: array for name in npz.files if isinstance(array := npz[name], np.ndarray)}


def _read_safetensors(file: BinaryIO) -> RawArrays:
    arrays: RawArrays = safetensors.numpy.load(file.read())
    return arrays


def _read_h5(file: BinaryIO) -> RawArrays:
    """Keras's legacy files, its .weights.h5, and Caffe's snapshots, which hold /data/<layer>/<number>."""
    with h5py.File(file, "r") as h5:
        if _listed(h5, "layer_names") or "model_weights" in h5:
            return _load(_legacy_datasets(_node(h5, "model_weights") if "model_weights" in h5 else h5), file)
        if "layers" in h5:
            groups = _node(h5, "layers")
            names = {group: _node(groups, f"{group}/vars").attrs["name"] for group in groups}
            return _load(_store_datasets(groups, names), file)
        if "data" in h5:
            data = _node(h5, "data")
            return _load({name: _node(data, name) for name in _dataset_names(data)}, file)
        return _load(_legacy_datasets(h5), file)


def _read_keras(file: BinaryIO) -> RawArrays:
    """A Keras 3 archive. Its config.json is read as the list of layers that it is; no object is made of it."""
    with zipfile.ZipFile(file) as archive:
        members = [archive.getinfo(name) for name in ("config.json", "model.weights.h5")]
        _check_size((member.file_size for member in members), file)
        config, store = (archive.read(member) for member in members)
    with h5py.File(io.BytesIO(store), "r") as h5:
        return _load(_store_datasets(_node(h5, "layers"), _store_names(json.loads(config))), file)


READERS: dict[str, Callable[[BinaryIO], RawArrays]] = {
    "npz": _read_npz,
    "h5": _read_h5,
    "hdf5": _read_h5,
    "keras": _read_keras,
    "safetensors": _read_safetensors,
}
"""Readers by the end of the file's name."""


# ------------------------------------------------------------------------------------------------ layouts inside HDF5


def _legacy_datasets(root: h5py.Group) -> dict[str, h5py.Dataset]:
    """Keras 1 and 2, and `save("x.h5")` of Keras 3: a group for each layer that lists its weights by name.

    The group names the layer: TensorFlow 1 numbered a weight's own name (block1_conv1_2/kernel:0). Only in the group of
    a model inside the model do the weights have several owners, and name their layers themselves.
    """
    found = {}
    for layer in _listed(root, "layer_names") or list(root):
        group = _node(root, layer)
        names = _listed(group, "weight_names") or _dataset_names(group)
        owners = {name.rpartition("/")[0] for name in names}
        for name in names:
            owner = layer if len(owners) == 1 else name.rpartition("/")[0].rpartition("/")[2]
            found[f"{owner}/{_variable_name(name)}"] = _node(group, name)
    return found


def _variable_name(name: str) -> str:
    """ "kernel" of "block1_conv1/kernel:0"; Keras 1 wrote "block1_conv1_W_1:0"."""
    last = name.rpartition("/")[2].partition(":")[0]
    old = re.search(r"_([Wb])(_\d+)?$", last)
    return {"W": "kernel", "b": "bias"}[old[1]] if old else last


def _store_names(config: dict[str, Any]) -> dict[str, str]:
    """Name of each layer by its group below layers/, as keras/src/saving/saving_lib.py (3.15) calls the groups.

    That is the class in snake case, numbered from the second on in the order of config.json.
    """
    if "layers" not in config["config"]:
        raise ValueError("config.json lists no layers: only Functional and Sequential models do")
    names, counts = {}, Counter[str]()
    for layer in config["config"]["layers"]:
        kind, name = layer["class_name"], layer["config"]["name"]
        if "layers" in layer["config"]:
            raise ValueError(f"it holds the model {name} inside the model: save model.get_layer({name!r}) by itself")
        group = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind)))
        group = group.lower()
        names[f"{group}_{counts[group]}" if counts[group] else group] = name
        counts[group] += 1
    return names


def _store_datasets(groups: h5py.Group, names: dict[str, str]) -> dict[str, h5py.Dataset]:
    """Keras 3: a group for each layer with its variables by number; what they are is told from their ranks."""
    found = {}
    for group, layer in names.items():
        node = _node(groups, f"{group}/vars") if group in groups else {}
        values = [_node(node, str(number)) for number in range(len(node))]
        ranks = [value.ndim for value in values]
        variables = NORMALISATION if ranks == [1] * 4 else ("kernel", "bias") if max(ranks, default=0) > 1 else ()
        found.update({f"{layer}/{name}": value for name, value in zip(variables, values, strict=False)})
    return found


def _listed(group: h5py.Group, name: str) -> list[str]:
    """A list of names in the attributes; Keras cuts long ones into name0, name1, ..."""
    parts = [name] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(f"{name}{len(parts)}")
    texts = [text for part in parts for text in group.attrs[part]]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _dataset_names(group: h5py.Group) -> list[str]:
    """Paths of all datasets below `group`; HDF5 visits each once and follows no links."""
    names: list[str] = []
    group.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return names


def _node(root: h5py.Group, path: str) -> Any:
    """The group or dataset at `path`, through groups of this file only: a link may name any file of this machine."""
    node = root
    for part in path.split("/"):
        link = node.get(part, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is missing" if link is None else f"{path} is a link")
        node = node[part]
    return node


def _load(datasets: dict[str, h5py.Dataset], file: BinaryIO) -> RawArrays:
    for name, dataset in datasets.items():
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise ValueError(f"{name} is no array of this file")
        if dataset.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {dataset.dtype}, expected numbers")
    _check_size((dataset.nbytes for dataset in datasets.values()), file)
    return {name: dataset[()] for name, dataset in datasets.items()}


def _check_size(sizes: Iterable[int], file: BinaryIO) -> None:
    """Before anything is unpacked: a few bytes may say that they are terabytes."""
    at, packed = file.tell(), file.seek(0, io.SEEK_END)
    file.seek(at)
    most = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * packed))
    if (total := sum(sizes)) > most:
        raise ValueError(f"it holds {total:,} bytes, expected at most {most:,}")
