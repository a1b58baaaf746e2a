"""One HTML page about a job: facts, charts, tables, pictures. It holds all it shows, loads nothing, runs no script."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from fcn_ray import storage
from fcn_ray.errors import printable
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
    folded: bool = False
    """Only its title is seen until the reader opens it."""

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
    heading: str = "Pictures"
    """Pictures that follow each other under one heading stand together."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing under its title, as `svg.draw` makes it: one <svg> element, put into the page as it is."""

    title: str
    svg: str
    wide: bool = False
    """It takes the whole width, not half of it."""


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
    charts: Sequence[Chart] = (),
) -> None:
    """Write the page to `path`, over what is there. `facts` are (name, value); `labels` colours the pictures."""
    storage.replace(path, render_page(title, facts, tables, pictures, labels, charts).encode())


def render_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
    labels: LabelSet | None = None,
    charts: Sequence[Chart] = (),
) -> str:
    """The page as HTML text. Raises ValueError for pictures with a label or mask but no `labels` to colour them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions hold paths, and error texts hold what strangers put into files
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = [
        (heading, [(picture.caption, _panels(picture, labels)) for picture in group])
        for heading, group in itertools.groupby(pictures, lambda picture: picture.heading)
    ]
    columns = max((len(panels) for _, rows in groups for _, panels in rows), default=1)
    return environment.get_template("page.html").render(
        title=title,
        facts=facts,
        charts=charts,
        tables=tables,
        legend=_legend(pictures, labels),
        groups=groups,
        columns=columns,
    )


def _plain(value: object) -> object:
    """Text without what would steer a reader's eye or machine (right-to-left marks, control characters)."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _legend(pictures: Sequence[Picture], labels: LabelSet | None) -> list[tuple[str, str]]:
    """Names and CSS colours of the classes in the pictures, in the order of their ids."""
    if labels is None:
        return []
    drawn = [ids for picture in pictures for ids in (picture.label, picture.mask) if ids is not None]
    found = sorted({int(value) for ids in drawn for value in np.unique(ids)} & set(range(len(labels))))
    return [(labels.names[index], _css_colour(labels.palette[index])) for index in found]


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
