"""The charts of a page: curves over the epochs, a bar for each class, a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fcn_ray.labels import Colour
from fcn_ray.reports import svg
from fcn_ray.reports.console import percent, shorten
from fcn_ray.reports.page import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Sequence[float | None]
Scale = Literal["linear", "loss", "percent"]

HALF, FULL = 500, 1040
"""CSS pixels: the width of a chart that shares its row, and of one that does not."""

FEW = 12
"""Classes: charts of so many take half a row."""

MOST_NUMBERS = 30
"""Classes: a larger confusion matrix has colours only, its numbers would be too small to read."""

LEVELS = 25
"""Strengths of colour in a confusion matrix; fields of one strength are one shape, which keeps 150 classes small."""

_NAME = 22
"""Characters of a class name beside a chart."""


def draw_curves(
    title: str, epochs: Sequence[int], curves: Mapping[str, Values], *, scale: Scale = "linear", best: int | None = None
) -> Chart:
    """A line for each of one or two `curves` (name -> value by epoch; None or NaN where there is none).

    Scale "linear" starts at 0, "percent" is for fractions and shows only where they are, "loss" is logarithmic when the
    values span too much for another. `best` is an epoch to mark.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, values), colour in zip(curves.items(), (svg.BLUE, svg.ORANGE), strict=False):
            known = [(e, v) for e, v in zip(epochs, values, strict=True) if v is not None and math.isfinite(v)]
            marker = "o" if len(known) <= 40 else None
            axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=4, clip_on=False, label=name)
        _set_scales(axes, epochs, [v for values in curves.values() for v in values if v is not None], scale)
        if best is not None:
            axes.axvline(best, color=svg.SOFT, linewidth=1, linestyle="--", zorder=1, label=f"best epoch: {best}")
        if len(curves) > 1 or best is not None:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)

    return Chart(title, svg.draw(title, HALF, 260, paint))


def _set_scales(axes: Axes, epochs: Sequence[int], values: Sequence[float], scale: Scale) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    factor, unit = (100, " %") if scale == "percent" else (1, "")
    if scale == "percent":
        margin = max(0.05 * (high - low), 0.01)
        axes.set_ylim(max(0.0, low - margin), min(1.0, high + margin))
    elif scale == "loss" and low > 0 and high / low > 100:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(min(0.0, 1.05 * low), 1.05 * high or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:.4g}{unit}"))
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.grid(axis="y")


def draw_class_bars(title: str, names: Sequence[str], values: Values, colours: Sequence[Colour]) -> Chart:
    """A bar of 0..1 for each class in its colour, the highest first; "-" for classes without a value."""
    order = sorted(range(len(names)), key=lambda i: -1.0 if _absent(values[i]) else values[i] or 0.0, reverse=True)
    columns = 1 if len(names) <= FEW else 2 if len(names) <= 40 else 3
    rows = math.ceil(len(names) / columns)

    def paint(figure: Figure) -> None:
        for axes, start in zip(np.ravel(figure.subplots(1, columns)), range(0, len(names), rows), strict=False):
            part = order[start : start + rows]
            lengths = [0.0 if _absent(values[i]) else values[i] or 0.0 for i in part]
            places = range(len(part))
            fill = [tuple(c / 255 for c in colours[i]) for i in part]
            axes.barh(places, lengths, height=0.7, color=fill, edgecolor=svg.SOFT, linewidth=0.5)
            for place, (i, length) in enumerate(zip(part, lengths, strict=True)):
                axes.text(length + 0.015, place, percent(values[i]), va="center", fontsize=11)
            axes.set_yticks(places, [shorten(names[i], _NAME) for i in part])
            axes.set_ylim(rows - 0.5, -0.5)
            axes.set_xlim(0, 1.22)
            axes.tick_params(length=0)
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)

    wide = columns > 1
    return Chart(title, svg.draw(title, FULL if wide else HALF, (20 if wide else 30) * rows + 16, paint), wide)


def _absent(value: float | None) -> bool:
    return value is None or math.isnan(value)


def draw_confusion(title: str, names: Sequence[str], confusion: npt.NDArray[np.int64]) -> Chart:
    """Shares of each class's pixels by predicted class, from a matrix (K, K + 1) as in models/metrics.Confusion.

    What is right is drawn in one colour, what is wrong in another, the stronger the larger its share. The last column
    (predictions that are no class) is there only when it holds something.
    """
    count = len(names)
    columns = count + bool(confusion[:, count].any())
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)[:, :columns]
    wide = count > FEW
    named = count <= 2 * MOST_NUMBERS
    width = HALF if not wide else FULL if named else 0.8 * FULL
    margin = 8 * max(len(shorten(name, _NAME)) for name in names) + 40 if named else 60
    cell = min(40.0, (width - margin) / columns)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _paint_fields(axes, shares, gap=0.06 if count <= MOST_NUMBERS else 0.0)
        if count <= MOST_NUMBERS:
            for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
                axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=11)
        _set_class_axes(axes, [shorten(name, _NAME) for name in names], shares.shape, named)

    return Chart(title, svg.draw(title, margin + cell * columns, margin + cell * count, paint), wide)


def _paint_fields(axes: Axes, shares: npt.NDArray[np.float64], gap: float) -> None:
    """A square for each share, with as much colour as it is large; those below half a per cent are left out."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    levels = np.ceil(shares * LEVELS).astype(int) * (shares >= 0.005)
    right = np.eye(*shares.shape) == 1
    half = 0.5 - gap / 2
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)])
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for level in range(1, LEVELS + 1):
        for where, colour in ((right, svg.RIGHT), (~right, svg.WRONG)):
            places = np.argwhere((levels == level) & where)[:, None, ::-1]
            if len(places):
                path = Path((places + corners).reshape(-1, 2), codes * len(places))
                # A root brings out the small shares, which are where there is something to learn.
                axes.add_patch(PathPatch(path, facecolor=colour, alpha=(level / LEVELS) ** 0.6, linewidth=0))


def _set_class_axes(axes: Axes, names: Sequence[str], shape: tuple[int, ...], named: bool) -> None:
    rows, columns = shape
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_aspect("equal")
    if named:
        small: dict[str, Any] = {"fontsize": 11 if rows <= MOST_NUMBERS else 9}
        axes.set_yticks(range(rows), names, **small)
        axes.set_xticks(range(columns), [*names, "no class"][:columns], rotation=90, **small)
    axes.tick_params(length=0 if named else 3, top=not named)
    axes.set_xlabel("predicted" if named else "predicted class id")
    axes.set_ylabel("label" if named else "class id of the label")
