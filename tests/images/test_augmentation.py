import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_ray.config import AugmentConfig
from fcn_ray.images.augmentation import augment, change_colour, sample_rng

VOID = 255
CONFIG = AugmentConfig(crop=(48, 64), scale=(0.5, 2.0), fill=(0, 0, 0))
STILL = AugmentConfig(crop=(48, 64), scale=(1.0, 1.0), flip=False, colour=0, fill=(0, 0, 0))


def sample(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.integers(0, 5, (height, width), dtype=np.uint8),
    )


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_any_size_gives_a_crop_of_known_ids(height, width, epoch):
    image, label = sample(height, width)
    crop, ids = augment(image, label, CONFIG, sample_rng(1, epoch, "a"), VOID)
    assert (crop.shape, ids.shape) == ((48, 64, 3), (48, 64))
    assert (crop.dtype, ids.dtype) == (np.uint8, np.uint8)
    assert set(np.unique(ids)) <= {*np.unique(label).tolist(), VOID}
    assert (ids != VOID).any()


@given(st.integers(0, 10_000), st.floats(0.5, 2.0))
@settings(deadline=None, max_examples=60)
def test_image_and_label_stay_aligned(seed, scale):
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, 60, 2)
    image, label = np.full((80, 90, 3), 20, np.uint8), np.zeros((80, 90), np.uint8)
    image[top : top + 20, left : left + 20] = 220
    label[top : top + 20, left : left + 20] = 1
    config = AugmentConfig(crop=(64, 80), scale=(scale, scale), colour=0, fill=(0, 0, 0))
    crop, ids = augment(image, label, config, rng, VOID)
    shown = ids != VOID
    disagree = shown & ((crop[..., 0] > 120) != (ids == 1))
    assert disagree.sum() <= 2 * 4 * 20 * scale  # at most the blended rim of the square
    assert (crop[~shown] == 0).all()


def test_the_same_seed_epoch_and_image_give_the_same_crop():
    image, label = sample(70, 90)

    def crop(*key):
        return augment(image, label, CONFIG, sample_rng(*key), VOID)

    first, again = crop(1, 2, "a"), crop(1, 2, "a")
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for other in [(2, 2, "a"), (1, 3, "a"), (1, 2, "b")]:
        assert not np.array_equal(first[0], crop(*other)[0])


def test_keys_do_not_run_into_each_other():
    assert sample_rng(1, 12, "3").random() != sample_rng(11, 2, "3").random()
    assert sample_rng(1, 1, "23").random() != sample_rng(1, 12, "3").random()


def test_without_changes_a_crop_is_a_piece_of_the_image():
    image, label = sample(50, 70)
    crop, ids = augment(image, label, STILL, sample_rng(1, 1, "a"), VOID)
    places = [
        (top, left)
        for top in range(3)
        for left in range(7)
        if np.array_equal(image[top : top + 48, left : left + 64], crop)
    ]
    assert len(places) == 1
    (top, left) = places[0]
    np.testing.assert_array_equal(label[top : top + 48, left : left + 64], ids)


def test_a_small_image_lies_whole_in_the_given_colour_and_void():
    image, label = sample(10, 12)
    config = STILL.model_copy(update={"fill": (124, 117, 104), "flip": True, "colour": 0.3})
    crop, ids = augment(image, label, config, sample_rng(1, 1, "a"), VOID)
    shown = ids != VOID
    assert shown.sum() == 10 * 12
    assert (crop[~shown] == (124, 117, 104)).all()
    crop, ids = augment(image, label, STILL, sample_rng(1, 1, "a"), VOID)
    np.testing.assert_array_equal(crop[ids != VOID].reshape(10, 12, 3), image)


def test_a_colour_that_is_not_known_yet_is_refused():
    with pytest.raises(ValueError, match="must be a colour"):
        augment(*sample(10, 12), AugmentConfig(), sample_rng(1, 1, "a"), VOID)


def test_about_half_are_mirrored():
    image, label = sample(48, 64)
    config = STILL.model_copy(update={"flip": True})
    crops = [augment(image, label, config, sample_rng(1, epoch, "a"), VOID) for epoch in range(60)]
    mirrored = [np.array_equal(crop, image[:, ::-1]) and np.array_equal(ids, label[:, ::-1]) for crop, ids in crops]
    kept = [np.array_equal(crop, image) and np.array_equal(ids, label) for crop, ids in crops]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 15 <= sum(mirrored) <= 45


def test_scales_cover_their_range():
    label = np.tile(np.arange(100, dtype=np.uint8) // 10, (100, 1))
    image = np.stack([label] * 3, axis=-1)
    config = AugmentConfig(crop=(100, 100), scale=(0.5, 1.0), fill=(0, 0, 0))
    shares = [(augment(image, label, config, sample_rng(1, e, "a"), VOID)[1] != VOID).mean() for e in range(60)]
    assert 0.25 <= min(shares) < 0.35
    assert 0.85 < max(shares) <= 1.0


def test_colours_by_hand():
    pixels = np.array([[[100, 100, 100], [200, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(change_colour(pixels, 1, 1, 1), pixels)
    assert change_colour(pixels, 1.5, 1, 1).tolist() == [[[150, 150, 150], [255, 0, 0]]]
    assert change_colour(pixels, 1, 0, 1)[0, 1].tolist() == [128, 128, 128]
    assert change_colour(pixels, 1, 1, 0)[0, 1].tolist() == [60, 60, 60]  # 0.299 * 200


def test_colour_changes_the_image_but_not_the_label():
    image, label = sample(48, 64)
    config = STILL.model_copy(update={"colour": 0.3})
    crop, ids = augment(image, label, config, sample_rng(1, 1, "a"), VOID)
    np.testing.assert_array_equal(ids, label)
    assert not np.array_equal(crop, image)


def test_no_scale_makes_an_image_vanish():
    _, ids = augment(*sample(1, 40), CONFIG.model_copy(update={"scale": (0.1, 0.1)}), sample_rng(1, 1, "a"), VOID)
    assert (ids != VOID).sum() == 4


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="must have the same size"):
        augment(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), CONFIG, sample_rng(1, 1, "a"), VOID)
