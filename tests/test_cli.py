from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

COMMANDS = ["demo", "train", "segment", "evaluate", "audit", "config show"]


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
        (["train", "--epochs", "many"], 2, ["--epochs", "valid integer", "fcn-ray --help"]),
        (["sgment"], 2, ["sgment"]),
        (["config", "show", "cluster"], 2, ["expected one of train, segment"]),
        (["audit", "nowhere"], 2, ["nowhere"]),
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
