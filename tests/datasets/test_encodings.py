from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcn_ray.datasets.encodings import (
    colour_table,
    id_table,
    map_colours,
    map_ids,
    read_colours,
    read_ids,
)
from fcn_ray.errors import DataError
from fcn_ray.images.codec import encode_image, encode_mask
from fcn_ray.labels import IGNORE_ID
from tests.datasets.making import label, write_label

CHANNEL = st.sampled_from([0, 1, 64, 128, 254, 255])
COLOUR = st.tuples(CHANNEL, CHANNEL, CHANNEL)
SHAPE = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(st.dictionaries(COLOUR, st.integers(0, 255), min_size=1, max_size=40), SHAPE, st.data())
def test_every_colour_is_looked_up_as_a_loop_over_pixels_would(meaning, shape, data):
    pixels = data.draw(arrays.arrays(np.uint8, (*shape, 3), elements=CHANNEL))
    ids, wrong = map_colours(pixels, colour_table(meaning))
    colours = [[tuple(map(int, pixel)) for pixel in row] for row in pixels]
    assert ids.dtype == np.uint8
    assert ids.tolist() == [[meaning.get(colour, IGNORE_ID) for colour in row] for row in colours]
    unknown = Counter(colour for row in colours for colour in row if colour not in meaning)
    assert wrong == {f"colour {r},{g},{b}": count for (r, g, b), count in unknown.items()}


@given(
    st.dictionaries(st.integers(0, 254), st.sampled_from([*range(20), IGNORE_ID]), max_size=40),
    arrays.arrays(np.uint8, SHAPE),
)
def test_every_id_is_looked_up_as_a_loop_over_pixels_would(meaning, pixels):
    ids, wrong = map_ids(pixels, id_table(meaning))
    known = meaning | {IGNORE_ID: IGNORE_ID}
    assert ids.dtype == np.uint8
    assert ids.tolist() == [[known.get(value, IGNORE_ID) for value in row] for row in pixels.tolist()]
    unknown = Counter(value for row in pixels.tolist() for value in row if value not in known)
    assert wrong == {f"id {value}": count for value, count in unknown.items()}


def test_of_a_palette_image_the_indices_count_and_never_the_colours(tmp_path):
    path = write_label(tmp_path / "a.png", label(0, 1, 255), palette=[9, 9, 9] * 256)
    ids, wrong = read_ids(path.read_bytes(), "a.png", table=id_table({0: 0, 1: 1}))
    assert ids.tolist() == label(0, 1, 255).tolist()
    assert not wrong


def test_colours_may_come_as_a_palette(tmp_path):
    path = write_label(tmp_path / "a.png", label(0, 1), palette=[9, 8, 7, 6, 5, 4])
    meaning = {(9, 8, 7): 3, (6, 5, 4): 2}
    ids, wrong = read_colours(path.read_bytes(), "a.png", table=colour_table(meaning), max_pixels=1000)
    assert ids.tolist() == label(3, 2).tolist()
    assert not wrong


def test_a_label_that_cannot_hold_colours_is_refused_by_name():
    table = colour_table({(0, 0, 0): 0})
    jpeg = encode_image(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"^a/b\.png: JPEG is lossy"):
        read_colours(jpeg, "a/b.png", table=table, max_pixels=1000)
    with pytest.raises(DataError, match=r"^a/b\.png: label is truncated"):
        read_colours(encode_mask(label(0))[:-20], "a/b.png", table=table, max_pixels=1000)
    with pytest.raises(DataError, match=r"^a/b\.png: label is too_big"):
        read_colours(encode_mask(label(0)), "a/b.png", table=table, max_pixels=599)
