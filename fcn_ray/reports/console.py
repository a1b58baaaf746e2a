"""What the commands print: plain lines that read well in a terminal and in a job's log."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence


def say(text: str = "") -> None:
    """One line on standard output, at once (a job's log must not lag behind the job)."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_lines(lines: Iterable[str]) -> None:
    """A report, line by line."""
    for line in lines:
        say(line)


def print_settings(rows: Sequence[tuple[str, str, str]]) -> None:
    """Settings as YAML-like lines with their meaning."""
    width = max(len(key) for key, _, _ in rows)
    for key, default, meaning in rows:
        say(f"{key:<{width}}  {default:<12}  {meaning}")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """(name, value) pairs as two columns."""
    rows = list(facts)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def shorten(text: str, width: int) -> str:
    """`text` in one line of at most `width` >= 1 characters; names come from files, so nothing unprintable stays."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= width else line[: width - 1] + "…"


def percent(value: float | None) -> str:
    """0.8512 -> "85.1 %"; a class that does not occur has no value."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"
