"""Interleaved rounds: outcomes kept line by line, medians of ratios, tables in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Outcome = dict[str, Any]
"""One measurement: case, contender, round, and what was found."""


class Outcomes:
    """All that was measured, kept in a file of JSON lines: a benchmark that is ended goes on."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._found: list[Outcome] = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )

    def add(self, outcome: Outcome) -> None:
        """Keep it."""
        self._found.append(outcome)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")

    def of(self, case: str, contender: str) -> dict[int, Outcome]:
        """By round; those that failed are left out, and tried again by the next benchmark."""
        return {
            outcome["round"]: outcome
            for outcome in self._found
            if (outcome["case"], outcome["contender"]) == (case, contender) and "failed" not in outcome
        }

    def run(self, case: str, contenders: Iterable[str], rounds: int, measure: Callable[[str, int], Outcome]) -> None:
        """Measure what has no outcome yet, A B C A B C."""
        for number in range(rounds):
            for contender in contenders:
                if number not in self.of(case, contender):
                    found = measure(contender, number)
                    self.add({"case": case, "contender": contender, "round": number} | found)
                    print(f"{case}, round {number + 1}: {contender} {_brief(found)}", flush=True)


def median(outcomes: dict[int, Outcome], key: str, digits: int = 1, scale: float = 1) -> str:
    """Of the outcomes that have it."""
    values = [outcome[key] * scale for outcome in outcomes.values() if outcome.get(key) is not None]
    return f"{statistics.median(values):,.{digits}f}" if values else "-"


def ratio(ours: dict[int, Outcome], theirs: dict[int, Outcome], key: str) -> str:
    """Median of the ratios of each round, and the smallest and largest."""
    both = [(ours[n].get(key), theirs[n].get(key)) for n in sorted(ours.keys() & theirs.keys())]
    values = [a / b for a, b in both if a and b]
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As Markdown."""
    print(f"\n{title}\n")
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")


def _brief(found: Outcome) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())[-300:]
