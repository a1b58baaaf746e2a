import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.images.geometry import group_by_size, pad_batch, padded_size, resize_image, resize_label

SIDES = st.integers(1, 200)
SIZES = st.lists(st.tuples(SIDES, SIDES), max_size=30)


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (32, 32)), ((32, 33), (32, 64)), ((360, 480), (384, 480))])
def test_padded_size_by_hand(size, padded):
    assert padded_size(*size) == padded


@given(SIDES, SIDES, st.integers(1, 64))
def test_padded_size_is_the_next_multiple(height, width, stride):
    for side, padded in zip((height, width), padded_size(height, width, stride), strict=True):
        assert padded % stride == 0
        assert side <= padded < side + stride


def test_no_pixels_have_no_padded_size():
    with pytest.raises(ValueError, match="found 0 x 5"):
        padded_size(0, 5)


def test_batches_are_padded_below_and_to_the_right():
    images = [np.full((2, 3, 3), 7, np.uint8), np.full((4, 1, 3), 9, np.uint8)]
    batch = pad_batch(images, 4, 4)
    assert batch.shape == (2, 4, 4, 3)
    assert batch.dtype == np.uint8
    assert batch[0, :, :, 0].tolist() == [[7, 7, 7, 0], [7, 7, 7, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert batch[1, :, :, 2].tolist() == [[9, 0, 0, 0]] * 4


@pytest.mark.parametrize("shape", [(5, 1, 3), (1, 5, 3)])
def test_an_image_larger_than_its_batch_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit"):
        pad_batch([np.zeros(shape, np.uint8)], 4, 4)


def test_groups_by_hand():
    sizes = [(32, 32), (64, 64), (32, 32), (64, 32), (32, 32)]
    assert group_by_size(sizes, 2 * 32 * 32) == [[0, 2], [1], [3], [4]]


@given(SIZES, st.integers(1, 300_000))
def test_groups_hold_every_image_once_within_the_budget(sizes, batch_pixels):
    groups = group_by_size(sizes, batch_pixels)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        (size,) = {sizes[index] for index in group}
        height, width = size
        assert len(group) == 1 or len(group) * height * width <= batch_pixels
        assert group == sorted(group)
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)


def test_images_are_blended_and_labels_are_not():
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 200
    label = np.array([[0, 200], [0, 200]], np.uint8)
    assert 0 < resize_image(image, 2, 8)[0, 3, 0] < 200
    assert resize_label(label, 4, 8).tolist() == [[0, 0, 0, 0, 200, 200, 200, 200]] * 4


def test_a_box_is_the_same_as_a_crop():
    label = np.random.default_rng(0).integers(0, 9, (20, 30), dtype=np.uint8)
    image = np.stack([label] * 3, axis=-1)
    box = (4, 2, 14, 12)
    np.testing.assert_array_equal(resize_label(label, 20, 20, box), np.kron(label[2:12, 4:14], np.ones((2, 2))))
    np.testing.assert_array_equal(resize_image(image, 10, 10, box), image[2:12, 4:14])
