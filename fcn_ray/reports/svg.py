"""matplotlib drawings as SVG elements of a page: in its colours, light or dark, and in its font; nothing is loaded."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("ink", "soft", "line", "blue", "orange", "right", "wrong")
_VARIABLES = {f"#00000{i}": name for i, name in enumerate(_COLOURS, 1)}
INK, SOFT, LINE, BLUE, ORANGE, RIGHT, WRONG = _VARIABLES
"""Stand-ins for the colours of page.html, which differ between light and dark: text, lesser text, rules, two curves,
the fields of what is right and of what is wrong."""

_COLOUR = re.compile("|".join(_VARIABLES))
_FAMILY = re.compile(r"(?<=font-family: )[^;]+|(?<=px )'[^;]+")
_PRECISE = re.compile(r"-?\d+\.\d{3,}")
_URL = re.compile(r"(?<=url\(#)[^)]+")
_LINK = re.compile(r"(?<=url\(#)[^)]+|(?<=href=\"#)[^\"]+")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in a font that the reader's machine has
    "svg.hashsalt": "fcn_ray",  # equal drawings give equal bytes
    "text.parse_math": False,  # a class may be named $x$
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "font.size": 12,
}


def draw(name: str, width: float, height: float, paint: Callable[[Figure], None]) -> str:
    """What `paint` draws on a figure of `width` x `height` CSS pixels, as one <svg> element.

    The same drawing gives the same text. `name` is what screen readers say, and keeps apart the ids of a page's charts.
    """
    import matplotlib.style  # a third of a second, that only a page needs
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    # "default" first: the reader's own matplotlibrc must not change our pages.
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's font lacks some scripts; it only measures, the reader's draws
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")  # SVG has 72 units an inch
        paint(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name, width, height)


def _inline(svg: bytes, name: str, width: float, height: float) -> str:
    """An SVG file as an element for HTML: no namespaces, no metadata, no style sheet that reaches beyond it."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    linked = set(_LINK.findall(svg.decode()))
    prefix = re.sub(r"\W+", "-", name.lower()) + "-"
    for element in root.iter():
        attributes = {_local(key): _themed(_local(key), value, prefix) for key, value in element.attrib.items()}
        if attributes.get("id", "").removeprefix(prefix) not in linked:
            attributes.pop("id", None)
        element.tag = _local(element.tag)
        element.text, element.tail = ((text or "").strip() or None for text in (element.text, element.tail))
        element.attrib.clear()
        element.attrib.update(attributes)
    root.attrib.clear()
    style = f"max-width: {width:g}px; stroke-linejoin: round; stroke-linecap: butt"
    root.attrib.update({"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": name, "style": style})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(name: str) -> str:
    """The name of a tag or an attribute without its namespace, which HTML knows by itself."""
    return name.rpartition("}")[2]


def _themed(key: str, value: str, prefix: str) -> str:
    """An attribute's value with the page's colours and font, and with ids that are this drawing's own."""
    if key == "id":
        return prefix + value
    if key == "style":
        value = _COLOUR.sub(lambda found: f"var(--{_VARIABLES[found[0]]})", value)
        value = _FAMILY.sub("system-ui, sans-serif", value)
    if key in ("d", "x", "y"):
        return _PRECISE.sub(lambda found: f"{float(found[0]):.2f}", value)  # pixels: half the size, and no less sharp
    if key == "href":
        return "#" + prefix + value[1:]
    return _URL.sub(lambda found: prefix + found[0], value)
