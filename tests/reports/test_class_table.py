import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.reports.class_table import EXTREMES, MOST, WIDTH, class_lines
from fcn_ray.reports.console import shorten

names = st.text(max_size=60)
values = st.one_of(st.none(), st.just(float("nan")), st.floats(0, 1))


def test_three_classes_stand_side_by_side_when_their_names_are_short():
    assert class_lines(["sky", "road", "car", "tree"], [0.5, None, 1.0, 0.0]) == [
        "  sky    50.0 %   car   100.0 %",
        "  road        -   tree    0.0 %",
    ]
    assert len(class_lines([f"class {i}" for i in range(60)], [0.5] * 60)) == 20


def test_long_names_take_two_columns_and_longer_ones_are_cut():
    lines = class_lines(["a" * 30, "b" * 60, "c", "d"], [0.1, 0.2, 0.3, 0.4])
    assert len(lines) == 2
    assert lines[1].startswith("  " + "b" * 37 + "…   20.0 %   d")
    assert max(map(len, lines)) <= WIDTH


def test_of_many_classes_the_best_and_the_worst_are_told():
    lines = class_lines([f"class {i}" for i in range(150)], [i / 150 for i in range(140)] + [None] * 10)
    assert lines[0].split() == ["best", "classes", "worst", "classes"]
    assert lines[1].split() == ["class", "139", "92.7", "%", "class", "0", "0.0", "%"]
    assert lines[-1] == "  120 classes between, 10 in neither labels nor masks"
    assert len(lines) == EXTREMES + 2


def test_of_few_known_classes_none_is_best_and_worst():
    lines = class_lines([f"class {i}" for i in range(80)], [float("nan")] * 30 + [0.5] * 12 + [None] * 38)
    shown = re.findall(r"class \d+", "\n".join(lines))
    assert len(shown) == len(set(shown)) == 12
    assert class_lines(["x"] * 61, [None] * 61) == ["  0 classes between, 61 in neither labels nor masks"]


@given(st.lists(st.tuples(names, values), min_size=2, max_size=255), st.integers(60, 200))
def test_no_line_is_longer_than_the_width_and_no_class_is_left_out(cells, width):
    lines = class_lines([name for name, _ in cells], [value for _, value in cells], width)
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    if len(cells) <= MOST:
        text = "\n".join(lines)
        assert text.count("%") - sum(name.count("%") for name, _ in cells) <= len(cells)
        for name, _ in cells:
            cut = [shorten(name, room) for room in range(8, width)]
            assert any(part.rstrip() in text for part in cut)


@pytest.mark.parametrize(("text", "short"), [("abc", "abc"), ("abcd", "ab…"), ("a\nb", "a?b"), ("\x1b[1m", "?[…")])
def test_names_from_files_are_made_fit_for_a_line(text, short):
    assert shorten(text, 3) == short
