"""Drawn streets with exact labels: the pictures of the demo, the tests and the benchmarks.

A street runs to a vanishing point between two rows of houses, with pavements, trees, cars and people along it. Colours
of the classes overlap (grey houses, blue and green cars, yellow trees), so that a network has to look at shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from fcn_ray.images.geometry import Pixels
from fcn_ray.labels import Colour, LabelSet

LABELS = LabelSet(
    names=("sky", "building", "road", "sidewalk", "tree", "car", "person"),
    palette=(
        (110, 170, 220),
        (150, 90, 80),
        (110, 80, 130),
        (235, 150, 215),
        (90, 150, 60),
        (30, 60, 200),
        (230, 50, 60),
    ),
)
SKY, BUILDING, ROAD, SIDEWALK, TREE, CAR, PERSON = range(len(LABELS))
VOID = LABELS.ignore_id

_GRAIN = {SKY: 1.5, BUILDING: 5, ROAD: 7, SIDEWALK: 6, TREE: 20, CAR: 4, PERSON: 6}
"""Standard deviation of each class's texture, in grey levels."""

_SKIES = ((120, 170, 225), (165, 190, 215), (190, 195, 200), (215, 185, 170))
_WALLS = ((170, 120, 100), (185, 165, 140), (140, 140, 145), (205, 195, 175), (120, 95, 90), (150, 160, 170))
_CROWNS = ((60, 110, 50), (85, 125, 55), (105, 130, 60), (125, 125, 50), (50, 95, 50))
_CARS = ((180, 40, 40), (45, 75, 150), (60, 110, 80), (200, 200, 205), (60, 60, 65), (200, 160, 60))
_COATS = ((200, 50, 60), (220, 160, 40), (215, 90, 40), (190, 60, 130), (225, 205, 90))
_TROUSERS = ((60, 70, 110), (70, 60, 60), (110, 100, 90))

Point = tuple[float, float]


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """A height of 120 to 168 and a width of 168 to 240 pixels."""
    return int(rng.integers(120, 169)), int(rng.integers(168, 241))


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[Pixels, Pixels]:
    """One street: image (height, width, 3) uint8 and label (height, width) uint8 with the ids of LABELS and void.

    Void are, as in PASCAL VOC, the pixels on either side of a border between classes, which the lens mixes, and the
    bonnet of the car that carries the camera, in about half of the pictures.
    """
    street = _Street(rng, height, width)
    street.draw_sky()
    street.draw_ground()
    for side in (-1, 1):
        street.draw_houses(side)
    street.draw_things()
    if rng.random() < 0.5:
        street.draw_bonnet()
    classes = np.array(street.label)
    return _photograph(rng, np.array(street.image), classes), _void_borders(classes)


class _Street:
    """Image and label canvases, painted together; `depth` is 0 at the vanishing point and 1 at the camera."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.image = Image.new("RGB", (width, height))
        self.label = Image.new("L", (width, height), VOID)
        self._brush, self._pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)
        self.horizon = height * rng.uniform(0.38, 0.48)
        self.centre = width * rng.uniform(0.4, 0.6)
        self.kerb = {-1: width * rng.uniform(-0.1, 0.15), 1: width * rng.uniform(0.85, 1.1)}
        """x of each kerb at the bottom of the picture."""
        self.foot = {side: height * rng.uniform(0.53, 0.61) for side in (-1, 1)}
        """y of each row of houses' foot at the picture's edge."""

    def polygon(self, points: Sequence[Point], colour: Colour, kind: int) -> None:
        self._brush.polygon(points, fill=colour)
        self._pen.polygon(points, fill=kind)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, kind: int) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, kind)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, kind: int) -> None:
        box = (x - rx, y - ry, x + rx, y + ry)
        self._brush.ellipse(box, fill=colour)
        self._pen.ellipse(box, fill=kind)

    def pick(self, colours: Sequence[Colour], spread: int = 10) -> Colour:
        """One of the colours, a little changed."""
        return _shift(colours[int(self.rng.integers(len(colours)))], self.rng.integers(-spread, spread + 1, 3))

    def draw_sky(self) -> None:
        top = self.pick(_SKIES)
        for y in range(int(self.horizon) + 2):
            glow = int(35 * y / self.horizon)
            self.box(0, y, self.width, y + 1, _shift(top, [glow, glow, glow // 2]), SKY)
        for _ in range(self.rng.integers(0, 4)):
            x, at = self.rng.uniform(0, self.width), self.rng.uniform(0, self.horizon * 0.6)
            cloud = _shift(top, [45, 45, 40])
            for _ in range(4):
                dx, dy = self.rng.uniform(-1, 1, 2) * (self.height * 0.09, self.height * 0.02)
                self.ellipse(x + dx, at + dy, self.height * 0.1, self.height * 0.035, cloud, SKY)

    def draw_ground(self) -> None:
        pavement = self.pick(((175, 165, 155), (165, 165, 165), (185, 170, 145)))
        self.box(0, self.horizon, self.width, self.height, pavement, SIDEWALK)
        asphalt = self.pick(((95, 95, 100), (115, 110, 110), (80, 82, 90)))
        vanishing = (self.centre, self.horizon)
        self.polygon([vanishing, (self.kerb[1], self.height), (self.kerb[-1], self.height)], asphalt, ROAD)
        middle = (self.kerb[1] + self.kerb[-1]) / 2
        for start in (0.12, 0.24, 0.42, 0.7):  # lane marks, longer the nearer they are
            ends = [self._towards(middle, depth) for depth in (start, start * 1.35)]
            (x0, y0), (x1, y1) = ends
            near, far = start * 1.35 * self.width * 0.012, start * self.width * 0.012
            marks = [(x0 - far, y0), (x0 + far, y0), (x1 + near, y1), (x1 - near, y1)]
            self.polygon(marks, (205, 205, 200), ROAD)

    def draw_houses(self, side: int) -> None:
        edge = 0 if side < 0 else self.width
        depth = 0.1
        while depth < 1:
            nearer = min(1.0, depth * self.rng.uniform(1.5, 2.2) + 0.08)
            x0, x1 = (self.centre + (edge - self.centre) * d for d in (depth, nearer))
            self._house(side, (x0, depth), (x1, nearer), self.height * self.rng.uniform(0.35, 0.75))
            depth = nearer

    def _house(self, side: int, far: Point, near: Point, tall: float) -> None:
        """A facade from (x, depth) to (x, depth), with rows of windows that run to the vanishing point."""

        def at(across: float, up: float) -> Point:
            x, depth = (a + (b - a) * across for a, b in zip(far, near, strict=True))
            foot = self.horizon + (self.foot[side] - self.horizon) * depth
            return x, foot - up * (foot - (self.horizon - tall * depth))

        wall = self.pick(_WALLS)
        self.polygon([at(0, 0), at(0, 1), at(1, 1), at(1, 0)], wall, BUILDING)
        pane = _shift(wall, [-60, -50, -40] if self.rng.random() < 0.7 else [35, 35, 15])
        columns, rows = max(1, int(abs(near[0] - far[0]) / (self.height * 0.11))), 4
        for column in range(columns):
            for row in range(rows):
                left, low = (column + 0.3) / columns, (row + 0.35) / rows
                right, high = left + 0.45 / columns, low + 0.45 / rows
                self.polygon([at(left, low), at(left, high), at(right, high), at(right, low)], pane, BUILDING)

    def draw_things(self) -> None:
        """Trees and people at places of their own on both pavements, cars on the road; the far ones first."""
        things: list[tuple[float, int, Callable[[int, float], None]]] = []
        for side in (-1, 1):
            for place in self.rng.permutation(4)[: self.rng.integers(1, 3)]:
                thing = self.draw_person if self.rng.random() < 0.55 else self.draw_tree
                things.append((0.55 + (place + self.rng.uniform(-0.2, 0.2)) * 0.13, side, thing))
            for start in (0.5, 0.72):
                if self.rng.random() < 0.5:
                    things.append((start + self.rng.uniform(0, 0.2), side, self.draw_car))
        for depth, side, draw in sorted(things, key=lambda entry: entry[0]):
            draw(side, depth)

    def _towards(self, x: float, depth: float) -> Point:
        """The point at `depth` on the line from the vanishing point to (x, bottom of the picture)."""
        return self.centre + (x - self.centre) * depth, self.horizon + (self.height - self.horizon) * depth

    def _pavement(self, side: int, depth: float) -> Point:
        outward = self.rng.uniform(1.15, 1.35)
        x, y = self._towards(self.centre + (self.kerb[side] - self.centre) * outward, depth)
        return min(max(x, 0.06 * self.width), 0.94 * self.width), y

    def draw_tree(self, side: int, depth: float) -> None:
        x, y = self._pavement(side, depth)
        size = self.height * 0.5 * depth
        self.box(x - size * 0.1, y - size, x + size * 0.1, y, self.pick(((95, 75, 60),)), TREE)
        crown = self.pick(_CROWNS)
        for _ in range(7):
            dx, dy = self.rng.uniform(-0.28, 0.28, 2) * size
            shade = _shift(crown, [int(self.rng.integers(-14, 15))] * 3)
            self.ellipse(x + dx, y - size * 1.15 + dy, size * 0.3, size * 0.3, shade, TREE)

    def draw_car(self, side: int, depth: float) -> None:
        lane = self.centre + (self.kerb[side] - self.centre) * self.rng.uniform(0.4, 0.75)
        x, y = self._towards(lane, depth)
        wide, tall = self.height * 0.3 * depth, self.height * 0.42 * depth
        paint, glass, tyre = self.pick(_CARS), self.pick(((60, 75, 90),)), (35, 35, 38)
        self.box(x - wide * 0.95, y - tall * 0.3, x + wide * 0.95, y, _shift(tyre, [14, 14, 14]), CAR)  # its shadow
        for wheel in (-0.72, 0.72):
            self.box(x + (wheel - 0.22) * wide, y - tall * 0.3, x + (wheel + 0.22) * wide, y, tyre, CAR)
        self.box(x - wide, y - tall * 0.62, x + wide, y - tall * 0.12, paint, CAR)
        for colour, top, shrink in ((paint, 1.0, 0.0), (glass, 0.93, 0.1)):
            base, roof = wide * (0.85 - shrink), wide * (0.62 - shrink)
            low, high = y - tall * 0.6, y - tall * top
            self.polygon([(x - base, low), (x - roof, high), (x + roof, high), (x + base, low)], colour, CAR)
        for lamp in (-0.85, 0.85):
            self.ellipse(x + lamp * wide * 0.92, y - tall * 0.48, wide * 0.1, tall * 0.06, (215, 60, 45), CAR)

    def draw_person(self, side: int, depth: float) -> None:
        x, y = self._pavement(side, depth)
        tall = self.height * 0.66 * depth
        coat, trousers, skin = self.pick(_COATS), self.pick(_TROUSERS), self.pick(((215, 170, 140), (130, 90, 70)))
        for leg in (-0.085, 0.085):
            self.box(x + (leg - 0.085) * tall, y - tall * 0.4, x + (leg + 0.085) * tall, y, trousers, PERSON)
        self.ellipse(x, y - tall * 0.56, tall * 0.23, tall * 0.28, coat, PERSON)
        self.ellipse(x, y - tall * 0.88, tall * 0.12, tall * 0.13, skin, PERSON)

    def draw_bonnet(self) -> None:
        x, rise = self.centre, self.height * self.rng.uniform(0.08, 0.13)
        self.ellipse(x, self.height, self.width * 0.42, rise, self.pick(_CARS), VOID)


def _shift(colour: Colour, by: Sequence[int] | npt.NDArray[np.int64]) -> Colour:
    red, green, blue = (min(255, max(0, int(c) + int(d))) for c, d in zip(colour, by, strict=True))
    return red, green, blue


def _void_borders(classes: Pixels) -> Pixels:
    label = classes.copy()
    beside, below = classes[:, 1:] != classes[:, :-1], classes[1:] != classes[:-1]
    for part, border in ((label[:, 1:], beside), (label[:, :-1], beside), (label[1:], below), (label[:-1], below)):
        part[border] = VOID
    return label


def _photograph(rng: np.random.Generator, image: Pixels, label: Pixels) -> Pixels:
    """The flat drawing with texture, uneven light, a tint, a soft lens and the noise of a sensor."""
    height, width = label.shape
    grain = np.zeros(256, np.float32)
    grain[list(_GRAIN)] = list(_GRAIN.values())
    coarse = _cloud(rng, height, width, 5)
    texture = grain[label] * (0.6 * coarse + 0.6 * rng.standard_normal((height, width)))
    light = 1 + 0.12 * _cloud(rng, height, width, 60)
    tint = rng.uniform(0.85, 1.12) * rng.uniform(0.94, 1.06, 3)
    lit = (image + texture[..., None]) * light[..., None] * tint
    lens = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    noisy = np.asarray(lens) + rng.normal(0, 2.5, (height, width, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _cloud(rng: np.random.Generator, height: int, width: int, cell: int) -> npt.NDArray[np.float32]:
    """Smooth noise (height, width) of about unit size, whose lumps are `cell` pixels wide."""
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
