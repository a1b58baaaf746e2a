"""S12, S15: the package itself runs no code that comes with data, starts nothing, unpacks nothing, guesses no names."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fcn_ray import storage
from fcn_ray.datasets.importing import import_dataset
from fcn_ray.training.group import _own_folder
from tests.tables.making import png

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "fcn_ray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])

FORBIDDEN = (
    *("eval", "exec", "compile", "__import__", "breakpoint", "importlib.import_module", "runpy", "code", "ctypes"),
    *("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch", "ray.cloudpickle", "pandas.read_pickle"),
    *(
        "os.system",
        "os.popen",
        "os.exec",
        "os.spawn",
        "os.posix_spawn",
        "os.fork",
        "subprocess",
        "pty",
        "multiprocessing",
    ),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("keras.models.load_model", "keras.saving.load_model", "keras.saving.deserialize_keras_object"),
    *("keras.config.enable_unsafe_deserialization", "keras.layers.deserialize", "keras.models.model_from_json"),
    *("tensorflow.saved_model.load", "tensorflow.keras", "onnxruntime.InferenceSession", "onnx.load"),
    *("tarfile", "shutil.unpack_archive", "zipfile.ZipFile.extractall", "zipfile.ZipFile.extract"),
    *("tempfile.mktemp", "tempfile.gettempdir", "os.umask", "os.chmod"),
    *(
        "urllib.request",
        "http.client",
        "http.server",
        "requests",
        "httpx",
        "aiohttp",
        "socket",
        "ftplib",
        "fsspec",
        "keras.utils.get_file",
    ),
    *("pyarrow.fs", "ray.data.read_", "ray.data.from_torch", "xml.sax", "xml.dom", "lxml"),
)
"""Dotted names, and the beginnings of names, that no module may use."""

ALLOWED = {
    ("fcn_ray/__init__.py", "importlib.import_module"): "the public names, from a dict in the module itself",
    ("fcn_ray/inference/export.py", "subprocess"): "a script of ours by its path, arguments in a list, no shell",
    ("fcn_ray/inference/isolation.py", "subprocess"): "isolated.py in a child, arguments in a list, no shell",
    ("fcn_ray/storage/gcs.py", "requests.exceptions"): "what Google's client raises; it makes the requests",
    ("fcn_ray/tables/arrow_files.py", "pyarrow.fs"): "a file system of read_masks whose files storage opens",
    ("fcn_ray/inference/export_check.py", "keras.models.load_model"): "the file that this very export has written",
    (
        "fcn_ray/inference/export_check.py",
        "tensorflow.saved_model.load",
    ): "the folder that this very export has written",
    ("fcn_ray/inference/export_check.py", "onnxruntime.InferenceSession"): "the file that this very export has written",
}
"""Exceptions, each with all names that begin with it, and why they are none."""

BUILTINS = ("eval", "exec", "compile", "__import__", "breakpoint")

METHODS = {"extractall", "extract", "set_auto_load", "unsafe_load"}
"""Methods that are forbidden whatever they belong to."""

ARGUMENTS = {
    "shell": {True},
    "allow_pickle": {True},
    "safe_mode": {False, None},
    "autoescape": {False},
    "verify": {False},
}
"""Arguments by name, and values that no call may give them."""


def find_uses(source: str) -> Iterator[str]:
    """Forbidden names that a module uses, by their full dotted names, forbidden arguments as "name=value", and paths
    that another user of the machine could have taken."""
    tree = ast.parse(source)
    known = {name: name for name in BUILTINS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                top = name if alias.asname or isinstance(node, ast.ImportFrom) else name.partition(".")[0]
                known[alias.asname or top.rpartition(".")[2]] = top
                yield from _matching(name)
    for node in ast.walk(tree):
        yield from _uses(node, known)


def _uses(node: ast.AST, known: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Attribute | ast.Name):
        yield from _matching(_dotted(node, known))
    if isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield node.attr
    if isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
        value = node.value.value if isinstance(node.value, ast.Constant) else next(iter(ARGUMENTS[node.arg]))
        if value in ARGUMENTS[node.arg]:
            yield f"{node.arg}={value}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("/tmp"):
        yield node.value


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """Full name of what was imported, or is a builtin; "" for anything else."""
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, known)
        return f"{owner}.{node.attr}" if owner else ""
    return known.get(node.id, "") if isinstance(node, ast.Name) else ""


def _matching(name: str) -> Iterator[str]:
    for forbidden in FORBIDDEN:
        whole = name == forbidden or name.startswith(f"{forbidden}.")
        if whole or (forbidden.endswith(("_", "exec", "spawn")) and "." in forbidden and name.startswith(forbidden)):
            yield name


def _covers(exception: tuple[str, str], use: tuple[str, str]) -> bool:
    return use[0] == exception[0] and f"{use[1]}.".startswith(f"{exception[1]}.")


def test_nothing_forbidden_is_used_and_every_exception_is() -> None:
    found = {
        (str(path.relative_to(ROOT)), use) for path in FILES for use in find_uses(path.read_text(encoding="utf-8"))
    }
    covers = {exception: {use for use in found if _covers(exception, use)} for exception in ALLOWED}
    assert found - set().union(*covers.values()) == set()
    assert [exception for exception, covered in covers.items() if not covered] == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from pickle import loads",
        "from ray import cloudpickle",
        "import os\nos.system('x')",
        "import os as o\no.popen('x')",
        "from os import execv",
        "import subprocess as s\ns.run('x', shell=True)",
        "run('x', shell=flag)",
        "import yaml\nyaml.load(x)",
        "from yaml import UnsafeLoader",
        "import torch",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import numpy as np\nnp.load(x, allow_pickle=flag)",
        "from keras.models import load_model",
        "import keras\nkeras.config.enable_unsafe_deserialization()",
        "load(x, safe_mode=False)",
        "import tensorflow as tf\ntf.saved_model.load(x)",
        "import zipfile\nzipfile.ZipFile(x).extractall(y)",
        "import tarfile",
        "import tempfile\ntempfile.mktemp()",
        "open('/tmp/fcn_ray/x')",
        "import ray\nray.data.read_parquet(x)",
        "import urllib.request",
        "import jinja2\njinja2.Environment(autoescape=False)",
        "import importlib\nimportlib.import_module(name)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(find_uses(source))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "import json\njson.loads(x)",
        "import yaml\nyaml.safe_load(x)",
        "codes.code",
        "execute()",
    ],
)
def test_the_search_leaves_alone(source: str) -> None:
    assert not list(find_uses(source))


# ------------------------------------------------------------------------------------------------------ files of ours


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _modes(folder: Path) -> set[tuple[str, int]]:
    return {("folder" if path.is_dir() else "file", stat.S_IMODE(path.lstat().st_mode)) for path in folder.rglob("*")}


@pytest.mark.parametrize("write", [storage.put_if_absent, storage.replace])
def test_outputs_are_as_open_as_the_user_wants(
    tmp_path: Path, umask: int, write: Callable[[str, bytes], object]
) -> None:
    write(str(tmp_path / "out" / "run" / "masks"), b"x")
    assert _modes(tmp_path) == {("folder", 0o777 & ~umask), ("file", 0o666 & ~umask)}


def test_so_are_imported_data_sets(tmp_path: Path, umask: int) -> None:
    for name, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").write_bytes(png(0, mode))
    import_dataset("folders", str(tmp_path / "in"), str(tmp_path / "out"), classes="a,b")
    assert _modes(tmp_path / "out") == {("folder", 0o777 & ~umask), ("file", 0o666 & ~umask)}


def test_what_ray_notes_on_this_machine_is_for_us_alone() -> None:
    with _own_folder("s3://bucket/out") as first, _own_folder("s3://bucket/out") as second:
        folders = [Path(first), Path(second)]
        assert folders[0] != folders[1]
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
        (folders[0] / "run-1").mkdir()
    assert not any(folder.exists() for folder in folders), "it goes with the group"
