"""Every command that the documents print must be one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from fcn_ray.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "jobs/train.yaml", "jobs/train-paper.yaml", "jobs/segment.yaml"]


def _commands() -> list[str]:
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        found += re.findall(r"^(?:# )?(fcn-ray [^#\n]+?)(?:  .*)?(?:#.*)?$", text, flags=re.MULTILINE)
        found += [f"fcn-ray {found}" for found in re.findall(r"`fcn-ray ([a-z][^`]*)`", text)]
    return sorted({command.strip() for command in found})


@pytest.mark.parametrize("line", _commands())
def test_printed_commands_parse(line: str) -> None:
    words = shlex.split(line)[1:]
    command = get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    if words:
        command.make_context("fcn-ray", words)


def test_the_documents_print_commands() -> None:
    assert len(_commands()) >= 10


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
