"""Which classes a public data set has: names, colours, and what its own ids mean.

Short lists stand here; long ones are read from the files that the data sets come with.
"""

from __future__ import annotations

import re

from fcn_ray.errors import DataError
from fcn_ray.labels import IGNORE_ID, Colour, LabelSet

VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

CITYSCAPES: dict[str, tuple[int, Colour]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
"""Class, in the order of its trainId -> its id in labelIds files, its colour."""

CITYSCAPES_IDS = 34
"""labelIds files hold 0..33; those that are no class above do not count in the benchmark."""

CAMVID: dict[str, dict[str, Colour]] = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0),
        "Archway": (192, 0, 128),
        "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign_symbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "OtherMoving": (128, 64, 64),
        "SUVPickupTruck": (64, 128, 192),
        "Train": (192, 64, 128),
        "Truck_Bus": (192, 128, 192),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Animal": (64, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Child": (192, 128, 64),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
"""The eleven classes of SegNet's CamVid by id -> the original ones that are counted to each; black is void."""

CAMVID_VOID = len(CAMVID)
"""The id of void in SegNet's files."""

COCO_GAPS = frozenset((11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90))
"""Ids of COCO's things that no image has; trainIds are the 171 others of 0..181, in order."""

COCO_IDS, ADE20K_CLASSES = 182, 150

_VOID = {"void", "unlabeled", "unlabelled", "ignore"}
_NUMBERED = re.compile(r"(\d+)\s*:\s*(\S.*)")
_TABULATED = re.compile(r"(\d+)\t.*\t([^\t]+)")
_COLOURED = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)")


def voc_palette(count: int) -> tuple[Colour, ...]:
    """VOC's colours of ids 0..count-1: bits 0, 3, 6 of the id are red's highest, then 1, 4, 7 green's, 2, 5 blue's."""

    def channel(index: int, first: int) -> int:
        return sum((index >> (first + 3 * place) & 1) << (7 - place) for place in range(3))

    return tuple((channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(count))


def number_classes(count: int) -> tuple[str, ...]:
    """Names for classes whose names nobody gave: "class 0", "class 1"..."""
    return tuple(f"class {index}" for index in range(count))


def parse_names(text: str, where: str) -> tuple[str, ...]:
    """Class names by id from the text of a file: a name on each line, or one of two numbered lists.

    "12: name" as in COCO stuff's labels.txt, where void is no class and the first of the others has id 0; and the table
    of ADE20K's objectInfo150.txt, whose names are lists of synonyms: the first one counts, unless two classes share it.
    Raises DataError, which names the file as `where`, for a list with gaps.
    """
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    for pattern, skipped in ((_NUMBERED, 0), (_TABULATED, 1)):
        rows = [pattern.fullmatch(line) for line in lines[skipped:]]
        if rows and all(rows):
            numbered = {int(row[1]): row[2].strip() for row in rows if row and row[2].strip().lower() not in _VOID}
            return _in_order(numbered, where)
    return tuple(lines)


def _in_order(numbered: dict[int, str], where: str) -> tuple[str, ...]:
    numbers = sorted(numbered)
    if not numbers or numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise DataError(f"{where}: classes are numbered {numbers}, expected 0, 1, 2... or 1, 2, 3... without gaps")
    texts = [numbered[number] for number in numbers]
    short = [text.split(",")[0].strip() for text in texts]
    return tuple(name if short.count(name) == 1 else text for name, text in zip(short, texts, strict=True))


def parse_colours(text: str, where: str) -> tuple[LabelSet, dict[Colour, int]]:
    """Classes, and the id of each colour, from lines "red green blue name" as in CamVid's label_colors.txt.

    The ids follow the lines; a line named void, unlabelled or ignore is the ignore id. Raises DataError naming `where`.
    """
    names: list[str] = []
    meaning: dict[Colour, int] = {}
    for line in filter(None, map(str.strip, text.lstrip("\ufeff").splitlines())):
        row = _COLOURED.fullmatch(line)
        if row is None or max(map(int, row.groups()[:3])) > 255:
            raise DataError(f"{where}: found {line!r}, expected lines of red, green, blue (0 to 255) and a name")
        colour = (int(row[1]), int(row[2]), int(row[3]))
        if colour in meaning:
            raise DataError(f"{where}: the colour {colour} is there twice; every class needs its own")
        void = row[4].strip().lower() in _VOID
        meaning[colour] = IGNORE_ID if void else len(names)
        names += [] if void else [row[4].strip()]
    palette = tuple(colour for colour, class_id in meaning.items() if class_id != IGNORE_ID)
    return LabelSet(tuple(names), palette), meaning
