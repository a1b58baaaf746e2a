"""The IoU of every class as lines of text, classes side by side, so that forty fit a terminal without scrolling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fcn_ray.reports.console import percent, shorten

WIDTH = 100
"""Characters: no line is longer."""

MOST = 60
"""Classes: of more than these, only the best and the worst are worth a line."""

EXTREMES = 10
"""How many of the best and of the worst."""

_INDENT, _GAP = "  ", "   "
_VALUE = 9
"""Characters of a value and what parts it from its name: "  100.0 %"."""


def class_lines(names: Sequence[str], class_iou: Sequence[float | None], width: int = WIDTH) -> list[str]:
    """Names and IoU (0..1; None in neither labels nor masks) as lines of at most `width` >= 60 characters.

    Classes go down the columns in the order of their ids. Of more than 60 only the best and the worst ten are told.
    Names that do not fit are cut.
    """
    cells = list(zip(names, class_iou, strict=True))
    if len(cells) > MOST:
        return _extremes(cells, width)
    columns = min(3 if max(map(len, names)) <= _name_width(width, 3) else 2, len(cells))
    rows = math.ceil(len(cells) / columns)
    return _side_by_side([cells[start : start + rows] for start in range(0, len(cells), rows)], width)


def _extremes(cells: list[tuple[str, float | None]], width: int) -> list[str]:
    """Best and worst beside each other, and a line about the rest."""
    known = sorted(((n, v) for n, v in cells if v is not None and not math.isnan(v)), key=lambda cell: -cell[1])
    worst = known[EXTREMES:][-EXTREMES:][::-1]  # of few known classes none is both
    shown = known[:EXTREMES]
    absent, between = len(cells) - len(known), len(known) - len(shown) - len(worst)
    rest = f"{between} classes between, {absent} in neither labels nor masks"
    if not known:
        return [_INDENT + rest]
    heads = _INDENT + "best classes".ljust(_name_width(width, 2) + _VALUE) + _GAP + ("worst classes" if worst else "")
    return [heads.rstrip(), *_side_by_side([shown, worst], width, full=True), _INDENT + rest]


def _side_by_side(columns: Sequence[Sequence[tuple[str, float | None]]], width: int, full: bool = False) -> list[str]:
    """Columns of (name, value) as lines; as wide as the longest name asks for, or `full`."""
    room = _name_width(width, len(columns))
    longest = max(len(name) for column in columns for name, _ in column)
    room = room if full else min(room, longest)
    blank = " " * (room + _VALUE)
    lines = []
    for row in range(max(map(len, columns))):
        cells = [
            f"{shorten(column[row][0], room):<{room}}  {percent(column[row][1]):>{_VALUE - 2}}"
            if row < len(column)
            else blank
            for column in columns
        ]
        lines.append((_INDENT + _GAP.join(cells)).rstrip())
    return lines


def _name_width(width: int, columns: int) -> int:
    """Characters that `columns` columns leave for a name."""
    return (width - len(_INDENT) - len(_GAP) * (columns - 1)) // columns - _VALUE
