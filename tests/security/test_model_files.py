"""S1, S2: model files from elsewhere are data: none runs anything, connects to anything, or takes all memory."""

from __future__ import annotations

import base64
import hashlib
import json
import marshal
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy

from fcn_ray.bundle import load_bundle
from fcn_ray.errors import BundleError, ConfigError, FcnRayError
from fcn_ray.models import weight_readers
from tests.security.bundles import write_bundle
from tests.security.canary import Canary, pickled

ROOT = Path(__file__).parents[2]
SECRET = "the-content-of-another-file"
ZEROS = 120_000_000
"""Bytes that a bomb of less than a megabyte unpacks to: below what weights may have in all."""


def _config(layer: dict[str, Any]) -> bytes:
    layers = [{"module": "keras.layers", "class_name": "InputLayer", "config": {"name": "image"}}, layer]
    return json.dumps({"module": "keras", "class_name": "Functional", "config": {"layers": layers}}).encode()


def _keras(path: Path, layer: dict[str, Any], store: bytes | None = None) -> None:
    if store is None:
        with h5py.File(path.with_suffix(".part"), "w") as file:
            file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 2), np.float32)
        store = path.with_suffix(".part").read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", _config(layer))
        archive.writestr("model.weights.h5", store)
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')


def _lambda_layer(canary: Path) -> dict[str, Any]:
    code = compile(f"__import__('os').mkdir({str(canary)!r})", "<lambda>", "eval")
    function = {"code": base64.b64encode(marshal.dumps(code)).decode(), "defaults": None, "closure": None}
    config = {"name": "harm", "function": {"class_name": "__lambda__", "config": function}}
    return {"module": "keras.layers", "class_name": "Lambda", "config": config, "name": "harm"}


def _safetensors(header: dict[str, Any] | None, length: int | None = None, data: bytes = b"\0" * 64) -> bytes:
    text = json.dumps(header or {}).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _legacy(path: Path, fill: Callable[[h5py.Group], Any]) -> None:
    with h5py.File(path, "w") as file:
        fill(file.create_group("block1_conv1"))


def _external(secret: Path) -> Callable[[h5py.Group], Any]:
    return lambda group: group.create_dataset("kernel", (4,), "f4", external=[(str(secret), 0, 16)])


def _virtual(path: Path) -> Callable[[h5py.Group], Any]:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(path), "kernel", (4,))
    return lambda group: group.create_virtual_dataset("kernel", layout)


def _link(link: object) -> Callable[[h5py.Group], Any]:
    def fill(group: h5py.Group) -> None:
        group.attrs["weight_names"] = ["kernel"]
        group["kernel"] = link

    return fill


def write_files(folder: Path, canary: Path, port: int) -> dict[str, str]:
    """Malicious files, and for each a part of the message that it is refused with."""
    secret = folder / "secret.txt"
    secret.write_text(SECRET)
    address = f"http://127.0.0.1:{port}/vocabulary"
    _keras(folder / "lambda.keras", _lambda_layer(canary))
    _keras(
        folder / "savedmodel.keras",
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"name": "x", "filepath": address}},
    )
    _keras(folder / "system.keras", {"module": "os", "class_name": "system", "config": f"mkdir {canary}"})
    for name, vocabulary in (("lookup", str(secret)), ("lookup-url", address)):
        config = {"name": "lookup", "vocabulary": vocabulary}
        _keras(folder / f"{name}.keras", {"module": "keras.layers", "class_name": "StringLookup", "config": config})
    with h5py.File(folder / "lambda.h5", "w") as file:
        file.attrs["model_config"] = _config(_lambda_layer(canary))
        file["model_weights/harm/kernel"] = np.zeros(3, np.float32)
    for name in ("pickle.npz", "pickle.h5", "pickle.keras", "pickle.safetensors", "pickle.pth", "pickle.pkl"):
        (folder / name).write_bytes(pickled(canary))
    objects = {"block1_conv1/kernel": np.array([Canary(canary)], object)}
    np.savez(folder / "objects.npz", **objects)
    (folder / "header.safetensors").write_bytes(_safetensors(None, 1 << 40))
    overlap = {"a": _tensor(0, 40, [10]), "b": _tensor(24, 64, [10])}
    (folder / "overlap.safetensors").write_bytes(_safetensors(overlap))
    (folder / "shape.safetensors").write_bytes(_safetensors({"a": _tensor(0, 64, [1 << 40])}))
    (folder / "beyond.safetensors").write_bytes(_safetensors({"a": _tensor(0, 1 << 40, [1 << 38])}))
    np.savez_compressed(folder / "bomb.npz", kernel=np.zeros(ZEROS // 4, np.float32))
    _keras(folder / "bomb.keras", _lambda_layer(canary), bytes(ZEROS))
    _legacy(
        folder / "bomb.h5",
        lambda group: group.create_dataset("kernel", (ZEROS // 4,), "f4", chunks=(1 << 20,), compression="gzip"),
    )
    _legacy(folder / "external.h5", _external(secret))
    _legacy(folder / "virtual.h5", _virtual(folder / "good.h5"))
    _legacy(folder / "link.h5", _link(h5py.ExternalLink(str(folder / "good.h5"), "block1_conv1/kernel")))
    _legacy(folder / "soft.h5", _link(h5py.SoftLink("/")))
    (folder / "linked.npz").symlink_to(secret)
    (folder / "linked.h5").symlink_to(secret)
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    (folder / "folder.npz").mkdir()
    os.mkfifo(folder / "pipe.h5")
    _legacy(folder / "good.h5", lambda group: group.create_dataset("kernel", data=np.zeros(4, np.float32)))
    np.savez(folder / "good.npz", kernel=np.zeros(4, np.float32))
    (folder / "good.safetensors").write_bytes(safetensors.numpy.save({"kernel": np.zeros(4, np.float32)}))
    return {
        "lambda.keras": "expected the names of keras-applications",
        "savedmodel.keras": "expected the names of keras-applications",
        "system.keras": "not a readable .keras file",
        "lookup.keras": "expected the names of keras-applications",
        "lookup-url.keras": "expected the names of keras-applications",
        "lambda.h5": "is missing",
        "pickle.npz": "not a readable .npz file",
        "pickle.h5": "not a readable .h5 file",
        "pickle.keras": "not a readable .keras file",
        "pickle.safetensors": "not a readable .safetensors file",
        "pickle.pth": "A pickle may run code",
        "pickle.pkl": "A pickle may run code",
        "objects.npz": "Object arrays cannot be loaded",
        "header.safetensors": "not a readable .safetensors file",
        "overlap.safetensors": "not a readable .safetensors file",
        "shape.safetensors": "not a readable .safetensors file",
        "beyond.safetensors": "not a readable .safetensors file",
        "bomb.npz": "expected at most 100,000,000",
        "bomb.keras": "expected at most 100,000,000",
        "bomb.h5": "expected at most 100,000,000",
        "external.h5": "is no array of this file",
        "virtual.h5": "is no array of this file",
        "link.h5": "is a link",
        "soft.h5": "is a link",
        "linked.npz": "not a readable .npz file",
        "linked.h5": "not a readable .h5 file",
        "saved": "expected a .npz, .h5, .keras or .safetensors file",
        "folder.npz": "there is no such file",
        "pipe.h5": "there is no such file",
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def malicious(place: Path) -> dict[str, str]:
    """The files in `place`, by name."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return write_files(place, place / "canary", listener.getsockname()[1])


@pytest.fixture(scope="module")
def outcome(place: Path, malicious: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.security.watched", str(place), *malicious]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    (place / "canary").rmdir()  # the control's
    return found


def test_malicious_weights_are_refused_and_do_nothing(outcome: dict[str, Any], malicious: dict[str, str]) -> None:
    assert len(malicious) >= 12
    for name, message in malicious.items():
        assert outcome["found"][name].startswith("ConfigError: model.weights"), (name, outcome["found"][name])
        assert message in outcome["found"][name], (name, outcome["found"][name])
        assert SECRET[:5] not in outcome["found"][name]
    assert outcome["seen"] == []
    assert any("pickle.find_class" in event for event in outcome["control"]), "nobody watched"


def test_bombs_are_not_unpacked(outcome: dict[str, Any], place: Path) -> None:
    assert max((place / name).stat().st_size for name in ("bomb.npz", "bomb.keras", "bomb.h5")) < 1_000_000
    assert outcome["grown"] < ZEROS / 4


def test_what_weights_may_unpack_to_follows_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_readers, "FREE_BYTES", 1000)
    np.savez(tmp_path / "plain.npz", kernel=np.zeros(50_000, np.float32))
    assert weight_readers.read_arrays(str(tmp_path / "plain.npz"))["kernel"].size == 50_000
    np.savez_compressed(tmp_path / "packed.npz", kernel=np.zeros(50_000, np.float32))
    with pytest.raises(ConfigError, match=r"it holds 200,128 bytes, expected at most \d\d,\d\d\d"):
        weight_readers.read_arrays(str(tmp_path / "packed.npz"))


# ----------------------------------------------------------------------------------------------------------- bundles


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": "os", "class_name": "system"}, "module: unknown key"),
        ({"spec": {"num_classes": 2, "backbone": "os.system"}}, "spec.backbone = os.system"),
        ({"spec": {"num_classes": 2, "class_name": "Lambda"}}, "spec.class_name: unknown key"),
        ({"preprocessing": {"channels": "RGB", "function": "eval"}}, "preprocessing.function: unknown key"),
        ({"spec": {"num_classes": 2, "width": 1e9}}, "spec.width"),
        ({"spec": {"num_classes": 10**30}}, "spec.num_classes"),
        ({"weights": {"sha256": "0" * 64, "bytes": 10**18}}, "weights.bytes"),
        ({"weights": {"sha256": "../../etc/passwd", "bytes": 1}}, "weights.sha256"),
        ({"format": "pickle"}, "format"),
    ],
)
def test_a_manifest_names_no_code_and_no_giant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_bundle(write_bundle(tmp_path / "b", b"x", **changes))


@pytest.mark.parametrize(
    "text",
    [
        pickle.dumps({"format": "fcn_ray.bundle/1"}),
        b'{"metadata": ' + b"[" * 1_000_000,
        b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"spec": {"num_classes": ' + b"9" * 1_000_000 + b"}}",
        b" " * 10_000_001,
    ],
    ids=["pickle", "nested", "nested and closed", "digits", "large"],
)
def test_a_manifest_that_is_a_bomb_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "model.json").write_bytes(text)
    large = "more than 10000000: is it the right file"
    with pytest.raises(BundleError, match=large if len(text) > 10_000_000 else r"model.json"):
        load_bundle(str(tmp_path))


def test_deep_metadata_is_refused_or_read_but_never_a_crash(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    folder = write_bundle(tmp_path / "b", b"x", metadata={"deep": deep})
    with pytest.raises(BundleError):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.keras", "saved_model.pb", "pytorch_model.bin", "model.safetensors"])
def test_another_programs_model_is_nowrite_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickled(tmp_path / "canary"))
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(str(tmp_path))
    assert not (tmp_path / "canary").exists()


def test_links_in_a_bundle_count_for_what_they_lead_to(tmp_path: Path) -> None:
    folder = Path(write_bundle(tmp_path / "b", b"weights"))
    (tmp_path / "blob").write_bytes(b"weights")  # as model hubs lay out what they have downloaded
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert load_bundle(str(folder)).weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "blob").write_bytes(b"another")
    with pytest.raises(BundleError, match="sha256"):
        load_bundle(str(folder))
    os.mkfifo(tmp_path / "pipe")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "pipe")
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(str(folder))


@pytest.mark.keras
def test_weights_that_a_bundle_vouches_for_are_still_no_code(
    tmp_path: Path, place: Path, malicious: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcn_ray.models import fcn

    network = fcn.build_fcn(load_bundle(write_bundle(tmp_path / "b", b"x")).spec, seed=None)
    monkeypatch.setattr(fcn, "build_fcn", lambda *_, **__: network)  # once is enough

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("this must not be called")

    for owner, name in ((pickle, "loads"), (pickle, "load"), (os, "system"), (socket.socket, "connect")):
        monkeypatch.setattr(owner, name, forbidden)
    files = [name for name in malicious if (place / name).is_file() and (place / name).stat().st_size < 100_000]
    assert len(files) >= 12
    for name in files:
        bundle = load_bundle(write_bundle(tmp_path / "b", (place / name).read_bytes()))
        with pytest.raises(FcnRayError, match=r"model.safetensors"):
            bundle.build()
    assert not (place / "canary").exists()


def test_a_few_bytes_do_not_build_a_large_network(tmp_path: Path) -> None:
    spec = {"width": 0.05, "fc_channels": 1_000_000, "num_classes": 2}
    bundle = load_bundle(write_bundle(tmp_path / "b", b"x" * 1000, spec=spec))
    with pytest.raises(BundleError, match="1000 bytes, too few for fc_channels 1000000"):
        bundle.build()
