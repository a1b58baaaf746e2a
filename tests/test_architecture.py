"""The house itself: what importing costs, what is public, and how long things may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fcn_ray
from fcn_ray import errors

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "fcn_ray").rglob("*.py"))


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _loaded_after("import fcn_ray, fcn_ray.cli")
    assert not loaded & {"ray", "keras", "tensorflow", "pyarrow", "numpy", "pydantic", "PIL"}


def test_a_job_that_has_nothing_to_do_does_not_wait_for_ray() -> None:
    assert not _loaded_after("import fcn_ray.inference.job") & {"ray", "pandas"}


@pytest.mark.parametrize(
    "module", ["fcn_ray.inference.stages", "fcn_ray.inference.pipeline", "fcn_ray.inference.execution"]
)
def test_what_a_decoding_worker_imports_is_free_of_keras(module: str) -> None:
    assert not _loaded_after(f"import {module}") & {"keras", "tensorflow"}


def test_public_names_are_all_there() -> None:
    for name in fcn_ray.__all__:
        assert getattr(fcn_ray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fcn_ray.nothing


def test_exit_codes_are_the_contract() -> None:
    codes = {error.__name__: error.exit_code for error in errors.FcnRayError.__subclasses__()}
    assert codes == {
        "ConfigError": 2,
        "DataError": 2,
        "ResourceError": 2,
        "IncompleteError": 4,
        "ForeignOutputError": 5,
        "SchemaError": 6,
        "DivergedError": 7,
        "BundleError": 8,
        "StorageError": 9,
        "AuditError": 10,
    }
    assert (errors.FcnRayError.exit_code, errors.EXIT_COMPLETE, errors.EXIT_BAD_IMAGES) == (1, 0, 3)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_outgrows_its_room(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "split it by what it is about"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno
            # A command is mostly the declaration of its options.
            assert length <= (70 if path.name == "cli.py" else 60), f"{node.name} has {length} lines"


def test_a_name_means_a_library_or_a_module_of_ours() -> None:
    """In one file: `requests` was both."""
    both = {str(path.relative_to(ROOT)): names for path in PACKAGE if (names := _libraries(path) & _own_modules(path))}
    assert both == {}


def _imported_from(path: Path) -> list[tuple[str, str]]:
    """(module, name or nothing) of each import."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = [
        (node.module or "", item.name) for node in nodes if isinstance(node, ast.ImportFrom) for item in node.names
    ]
    return named + [(item.name, "") for node in nodes if isinstance(node, ast.Import) for item in node.names]


def _libraries(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in _imported_from(path)} - {"fcn_ray"}


def _own_modules(path: Path) -> set[str]:
    ours = [(module, name) for module, name in _imported_from(path) if module.partition(".")[0] == "fcn_ray"]
    return {part for module, name in ours for part in (module.rpartition(".")[2], name)}
