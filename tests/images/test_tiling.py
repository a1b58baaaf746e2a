import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_ray.images.tiling import Tile, paste, plan_tiles, whole_image

SIDES = st.integers(1, 3000)
HALOS = st.sampled_from([32, 96, 224, 288])


def test_tiles_by_hand():
    tiles = plan_tiles(300, 40, halo=32, tile_pixels=128 * 64)
    # 320 rows and 64 columns padded; windows of 128 rows bring 64 new ones, the first and the last 96.
    assert [tile.window for tile in tiles] == [(0, 0, 128, 64), (64, 0, 192, 64), (128, 0, 256, 64), (192, 0, 320, 64)]
    assert [tile.core for tile in tiles] == [(0, 0, 96, 40), (96, 0, 160, 40), (160, 0, 224, 40), (224, 0, 300, 40)]
    assert tiles[1].core_in_window() == (32, 0, 96, 40)


def test_the_size_that_computes_least_is_chosen():
    """8192 x 8192 in tiles of two million pixels: twice the image, and nothing squarer or larger would be less."""
    tiles = plan_tiles(8192, 8192, halo=224, tile_pixels=2_097_152)
    (size,) = {tile.size for tile in tiles}
    assert size[0] * size[1] <= 2_097_152
    assert len(tiles) * size[0] * size[1] / 8192**2 < 2.2


@given(SIDES, SIDES, HALOS, st.integers(400_000, 3_000_000))
def test_cores_cover_every_pixel_once_and_have_their_halo(height, width, halo, tile_pixels):
    tiles = plan_tiles(height, width, halo, tile_pixels)
    covered = np.zeros((height, width), np.uint8)
    tall, wide = whole_image(height, width).size
    for tile in tiles:
        top, left, bottom, right = tile.window
        assert tile.size == tiles[0].size
        assert tile.size[0] * tile.size[1] <= tile_pixels
        assert all(side % 32 == 0 for side in tile.window)
        assert 0 <= top < bottom <= tall
        assert 0 <= left < right <= wide
        for start, end, first, last, size, padded in (
            (top, bottom, tile.core[0], tile.core[2], height, tall),
            (left, right, tile.core[1], tile.core[3], width, wide),
        ):
            assert start <= first < last <= end
            assert first - start >= halo or start == 0
            assert end - last >= halo or end == padded
            assert first % 32 == 0
            assert last % 32 == 0 or last == size
        covered[tile.core[0] : tile.core[2], tile.core[1] : tile.core[3]] += 1
    assert (covered == 1).all()


def test_a_tile_without_room_for_a_core_is_refused_with_the_size_it_takes():
    with pytest.raises(ValueError, match=r"raise predict\.tile_pixels to 230400 or more"):
        plan_tiles(4000, 4000, halo=224, tile_pixels=200_000)


@given(SIDES, SIDES, st.sampled_from([1, 32]))
def test_a_whole_image_is_its_own_core(height, width, grid):
    tile = whole_image(height, width, grid)
    assert tile.core == (0, 0, height, width) == tile.core_in_window()
    assert all(side <= padded < side + grid for side, padded in zip((height, width), tile.size, strict=True))


def test_a_window_is_a_view_that_ends_with_the_image_and_its_core_is_pasted():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    tile = Tile(window=(2, 4, 8, 10), core=(3, 5, 5, 7))
    cut = tile.cut(image)
    assert cut.base is not None
    assert cut.shape == (3, 3, 3)
    mask = np.zeros((5, 7), np.uint8)
    paste(mask, tile, np.arange(36, dtype=np.uint8).reshape(6, 6))
    assert mask[3:, 5:].tolist() == [[7, 8], [13, 14]]
    assert np.count_nonzero(mask) == 4
