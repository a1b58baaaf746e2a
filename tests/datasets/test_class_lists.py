from __future__ import annotations

import pytest

from fcn_ray.datasets import class_lists
from fcn_ray.datasets.class_lists import parse_colours, parse_names, voc_palette
from fcn_ray.errors import DataError
from fcn_ray.labels import IGNORE_ID


def test_the_voc_palette_is_the_published_one():
    palette = voc_palette(21)
    assert palette[:9] == (
        *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)),
        *((128, 0, 128), (0, 128, 128), (128, 128, 128), (64, 0, 0)),
    )
    assert palette[20] == (0, 64, 128)
    assert len(set(voc_palette(255))) == 255


def test_the_lists_are_whole():
    assert (len(class_lists.VOC), len(class_lists.CITYSCAPES), len(class_lists.CAMVID)) == (21, 19, 11)
    colours = [colour for group in class_lists.CAMVID.values() for colour in group.values()]
    assert len(colours) == len(set(colours)) == 31
    assert (0, 0, 0) not in colours
    assert len({place for place, _ in class_lists.CITYSCAPES.values()}) == 19
    assert class_lists.COCO_IDS - len(class_lists.COCO_GAPS) == 171


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("\ufeffsky\r\n\r\n road \nbus stop\n", ("sky", "road", "bus stop")),
        ("0: unlabeled\n1: person\n2: traffic light\n", ("person", "traffic light")),
        ("1: person\n0: unlabeled\n", ("person",)),
        ("0: person\n1: bicycle\n255: unlabeled\n", ("person", "bicycle")),
        ("Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t6\twall\n2\t0.2\t7\t8\tbuilding, edifice\n", ("wall", "building")),
        ("Idx\tName\n1\t0.1\tdoor, a\n2\t0.1\tdoor, b\n3\t0.1\tsky, c\n", ("door, a", "door, b", "sky")),
    ],
)
def test_names_come_in_three_forms(text, names):
    assert parse_names(text, "classes.txt") == names


@pytest.mark.parametrize("text", ["1: a\n3: b\n", "2: a\n3: b\n", "0: unlabeled\n"])
def test_a_numbered_list_has_no_gaps(text):
    with pytest.raises(DataError, match=r"^classes\.txt: classes are numbered"):
        parse_names(text, "classes.txt")


def test_a_list_of_colours():
    text = "\ufeff64 128 64\tAnimal\r\n0 0 0 \t\tVoid\r\n\r\n128 0 192\tLane markings\r\n0 0 1 Unlabelled\n"
    labels, meaning = parse_colours(text, "label_colors.txt")
    assert labels.names == ("Animal", "Lane markings")
    assert labels.palette == ((64, 128, 64), (128, 0, 192))
    assert meaning == {(64, 128, 64): 0, (0, 0, 0): IGNORE_ID, (128, 0, 192): 1, (0, 0, 1): IGNORE_ID}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1 2 3 sky\n1 2 256 road\n", "found '1 2 256 road'"),
        ("1 2 3 sky\n1 2 road\n", "found '1 2 road'"),
        ("1 2 3 sky\n1 2 3 road\n", r"colour \(1, 2, 3\) is there twice"),
    ],
)
def test_a_bad_list_of_colours_is_refused_by_its_line(text, part):
    with pytest.raises(DataError, match=rf"^label_colors\.txt: .*{part}"):
        parse_colours(text, "label_colors.txt")
