"""One HTML page about a job: facts, tables, pictures. It holds all it shows, needs no network and runs no script."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from fcn_ray import storage
from fcn_ray.images.codec import encode_image
from fcn_ray.images.geometry import Pixels, resize_image
from fcn_ray.images.overlay import overlay
from fcn_ray.labels import LabelSet

MAX_SIDE = 640
"""Pixels: larger pictures are shrunk, so that a page of twenty stays near a megabyte."""

_NUMBER = re.compile(r"[-+]?[\d,. ]*\d[\d,. ]*( ?%)?|-|")


@dataclass(frozen=True, slots=True)
class Table:
    """Text cells under a heading; columns of numbers are set flush right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def numeric(self) -> list[bool]:
        """For each column: are all its cells numbers, percentages or empty?"""
        return [
            bool(self.rows) and all(_NUMBER.fullmatch(row[index]) for row in self.rows)
            for index in range(len(self.header))
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image (H, W, 3) uint8 with the label and the mask (H, W) uint8 that it has; they are drawn over it."""

    caption: str
    image: Pixels
    label: Pixels | None = None
    mask: Pixels | None = None


@dataclass(frozen=True, slots=True)
class _Panel:
    name: str
    source: str


def write_page(
    path: str,
    title: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
    labels: LabelSet | None = None,
) -> None:
    """Write the page to `path`, over what is there. `facts` are (name, value); `labels` colours the pictures."""
    storage.replace(path, render_page(title, facts, tables, pictures, labels).encode())


def render_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
    labels: LabelSet | None = None,
) -> str:
    """The page as HTML text. Raises ValueError for pictures with a label or mask but no `labels` to colour them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions hold paths, and error texts hold what strangers put into files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    legend = list(zip(labels.names, map(_css_colour, labels.palette), strict=True)) if labels and pictures else []
    rows = [(picture.caption, _panels(picture, labels)) for picture in pictures]
    columns = max((len(panels) for _, panels in rows), default=1)
    return environment.get_template("page.html").render(
        title=title, facts=facts, tables=tables, pictures=rows, legend=legend, columns=columns
    )


def _panels(picture: Picture, labels: LabelSet | None) -> list[_Panel]:
    panels = [_Panel("image", _data_uri(picture.image))]
    for name, ids in (("label", picture.label), ("mask", picture.mask)):
        if ids is None:
            continue
        if labels is None:
            raise ValueError(f"{picture.caption}: its {name} needs a label set to be coloured")
        panels.append(_Panel(name, _data_uri(overlay(picture.image, ids, labels.palette, labels.ignore_id))))
    return panels


def _data_uri(pixels: Pixels) -> str:
    height, width = pixels.shape[:2]
    factor = MAX_SIDE / max(height, width)
    if factor < 1:
        pixels = resize_image(pixels, max(1, round(height * factor)), max(1, round(width * factor)))
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(pixels, quality=85)).decode()


def _css_colour(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
