from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tables.making import finished_run, png

COMMANDS = ["demo", "import", "check", "train", "segment", "benchmark", "evaluate", "audit", "export", "config show"]
COMMANDS += ["config network"]


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fcn_ray", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "COLUMNS": "120"},
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = _run(*command.split(), "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout
    assert f"fcn-ray {command}" in result.stdout


def test_help_lists_the_commands_and_version_says_which() -> None:
    from fcn_ray import __version__

    listing = _run("--help").stdout
    assert all(command.split()[0] in listing for command in COMMANDS)
    assert _run("--version").stdout == f"fcn-ray {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["segment", "in", "out"], 2, ["model: required"]),
        (["segment", "in", "out", "--model", "nowhere"], 8, ["nowhere"]),
        (["train", "--data", "a", "--out", "b", "--set", "epoch=3"], 2, ["epoch: unknown key", "'epochs'"]),
        (["train", "--data", "nowhere.parquet", "--out", "b"], 2, ["no Parquet file at", "nowhere.parquet"]),
        (["check", "nowhere.parquet"], 2, ["no Parquet file at", "nowhere.parquet"]),
        (["train", "--epochs", "many"], 2, ["--epochs", "valid integer", "fcn-ray --help"]),
        (["sgment"], 2, ["sgment"]),
        (["config", "show", "cluster"], 2, ["expected one of train, segment, check"]),
        (["audit", "nowhere"], 2, ["nowhere"]),
        (["export", "nowhere", "street.keras"], 8, ["nowhere/model.json does not exist"]),
        (["export", "nowhere", "street.h5"], 2, ["street.h5", "expected .keras, .onnx"]),
        (["evaluate", "nowhere", "nowhere"], 2, ["nowhere"]),
    ],
)
def test_mistakes_end_with_their_code_and_one_plain_message(
    tmp_path: Path, arguments: list[str], code: int, parts: list[str]
) -> None:
    result = _run(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_config_show_prints_every_setting_or_what_a_job_would_use() -> None:
    listing = _run("config", "show", "segment").stdout
    assert "predict.batch_pixels" in listing
    assert "Padded pixels in one forward pass" in listing
    resolved = _run("config", "show", "train", "--set", "data=a", "--set", "out=b", "--set", "epochs=7").stdout
    assert yaml.safe_load(resolved)["epochs"] == 7


@pytest.mark.keras
def test_a_network_is_counted_by_its_settings_or_its_bundle(tiny_bundle: Path) -> None:
    options = ["--set", "width=0.02", "--set", "fc_channels=8", "--set", "geometry=paper", "--size", "50x40"]
    result = _run("config", "network", *options)
    assert result.returncode == 0, result.stderr
    assert "FCN-8s on vgg16, 21 classes, geometry paper" in result.stdout
    assert "404 pixels" in result.stdout
    assert "no tiles" in result.stdout
    of_bundle = _run("config", "network", str(tiny_bundle))
    assert "FCN-8s on vgg16, 3 classes, geometry same" in of_bundle.stdout
    assert "margin of a tile                 224 pixels" in of_bundle.stdout


@pytest.mark.parametrize("size", ["500", "0x10", "10x", "-1x5", "1e3x5"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    result = _run("config", "network", f"--size={size}")
    assert result.returncode == 2
    assert "expected WIDTHxHEIGHT" in result.stderr


def _program(body: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program with another command line inside; what it diverts goes below `cwd`."""
    code = f"import os, signal, sys\nfrom fcn_ray import __main__ as program\n{body}"
    environment = {**os.environ, "TMPDIR": str(cwd)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.mark.parametrize(("signals", "code"), [(1, 143), (2, 143), (3, -15)])
def test_the_third_signal_does_not_wait_for_anything(signals: int, code: int, tmp_path: Path) -> None:
    body = f"""
def app(**_):
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException:  # puts things in order, which takes long
        for _ in range({signals} - 1):
            signal.raise_signal(signal.SIGTERM)
program.app = app
program.main()
"""
    result = _program(body, tmp_path)
    assert result.returncode == code, result.stderr


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("raise ZeroDivisionError('odd')", ["ZeroDivisionError: odd", "what libraries wrote meanwhile is in"]),
        ("os.abort()", ["Fatal Python error: Aborted", "in app"]),
    ],
)
def test_a_crash_says_where_it_was_and_what_was_written_before(fault: str, parts: list[str], tmp_path: Path) -> None:
    app = f"def app(**_):\n    os.write(2, b'a line of C++')\n    {fault}"
    result = _program(f"{app}\nprogram.app = app\nprogram.main()", tmp_path)
    assert result.returncode not in (0, 2)
    for part in parts:
        assert part in result.stderr
    assert [file.read_text() for file in tmp_path.iterdir()] == ["a line of C++"]
    assert _program("program.app = lambda **_: 0\nprogram.main()", tmp_path).returncode == 0
    assert len(list(tmp_path.iterdir())) == 1, "a normal end leaves none"


def test_an_input_that_cannot_be_read_is_named_and_ends_with_its_code(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "night.parquet").touch()
    command = ["segment", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tiny_bundle)]
    result = subprocess.run(
        [sys.executable, "-m", "fcn_ray", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 3, result.stderr
    assert "not read: night.parquet: not a readable Parquet file of 0 bytes" in result.stdout


@pytest.mark.parametrize(("size", "code", "line"), [((4, 3), 0, "ok: every"), ((3, 4), 10, "BROKEN source: ")])
def test_an_audit_measures_the_input_if_asked(tmp_path: Path, size: tuple[int, int], code: int, line: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(size=size))
    finished_run(tmp_path)
    found = _run("audit", f"{tmp_path}/out", "--source")
    assert (found.returncode, _run("audit", f"{tmp_path}/out").returncode) == (code, 0), found.stdout
    assert "1 images measured in the input" in found.stdout
    assert line in found.stdout
