import numpy as np
import pytest

from fcn_ray.images.overlay import overlay

PALETTE = [(0, 200, 40), (255, 0, 0)]
IMAGE = np.full((1, 4, 3), 100, np.uint8)


def test_colours_are_mixed_in_by_hand():
    mixed = overlay(IMAGE, np.array([[0, 1, 255, 7]], np.uint8), PALETTE, ignore_id=255, alpha=0.5)
    assert mixed.dtype == np.uint8
    assert mixed.tolist() == [[[50, 150, 70], [178, 50, 50], [100, 100, 100], [100, 100, 100]]]


def test_an_ignored_id_with_a_colour_is_not_drawn():
    assert (overlay(IMAGE, np.ones((1, 4), np.uint8), PALETTE, ignore_id=1) == 100).all()


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="same size"):
        overlay(IMAGE, np.zeros((4, 1), np.uint8), PALETTE, ignore_id=255)
