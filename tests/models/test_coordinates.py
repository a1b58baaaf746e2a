from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from fcn_ray.config import ModelSpec
from fcn_ray.models.backbones import BACKBONES
from fcn_ray.models.coordinates import Place, count_multiply_adds, halo, locate, receptive_field
from fcn_ray.models.fcn import build_fcn, count_parameters
from fcn_ray.models.layers import CeilMaxPooling, CropLike
from fcn_ray.models.upsampling import Deconvolution, Upsample
from tests.networks import shared_model, tiny_spec

pytestmark = pytest.mark.keras

LAYERS = keras.layers


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (LAYERS.Conv2D(1, 3, padding="same"), Place(1, 0)),
        (LAYERS.Conv2D(1, 3), Place(1, 1)),
        (LAYERS.Conv2D(1, 3, dilation_rate=2, padding="same"), Place(1, 0)),
        (LAYERS.Conv2D(1, 11, strides=4), Place(4, 5)),
        (LAYERS.Conv2D(1, 3, strides=2, padding="same"), Place(2, 1)),  # TensorFlow pads after for even sizes
        (LAYERS.DepthwiseConv2D(5, strides=2), Place(2, 2)),
        (LAYERS.MaxPooling2D(2), Place(2, 0.5)),
        (LAYERS.AveragePooling2D(3), Place(3, 1)),
        (CeilMaxPooling(3, 2), Place(2, 1)),
        (LAYERS.ZeroPadding2D(100), Place(1, -100)),
        (LAYERS.Cropping2D(((2, 1), (2, 1))), Place(1, 2)),
        (LAYERS.ReLU(), Place(1, 0)),
        (Upsample(2), Place(0.5, -0.25)),
        (Upsample(8, 7), Place(0.125, -0.875)),
        (Deconvolution(2, 4), Place(0.5, -0.75)),
        (Deconvolution(2, 4, 0.5), Place(0.5, -0.25)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_places_of_one_layer(layer: LAYERS.Layer, place: Place) -> None:
    image = keras.Input((32, 32, 3))
    assert locate(image, layer(image)) == place


def test_steps_are_composed_from_the_image_on() -> None:
    image = keras.Input((None, None, 3))
    x = LAYERS.MaxPooling2D(2)(LAYERS.Conv2D(4, 3)(image))
    assert locate(image, x) == Place(2, 1.5)
    assert locate(image, CropLike(5)([x, image])) == Place(2, 11.5)
    assert locate(image, image) == Place(1, 0)


def test_streams_that_do_not_meet_are_refused() -> None:
    image = keras.Input((None, None, 1))
    shifted = LAYERS.Cropping2D(((1, 0), (1, 0)))(LAYERS.ZeroPadding2D(((0, 1), (0, 1)))(image))
    with pytest.raises(ValueError, match="merges cells of different places"):
        locate(image, LAYERS.Add(name="meet")([image, shifted]))


@pytest.mark.parametrize(("backbone", "pixels"), [("vgg16", 404), ("alexnet", 355), ("alexnet_torchvision", 355)])
@pytest.mark.parametrize("geometry", ["same", "paper"])
def test_receptive_fields_are_those_of_the_paper(backbone: str, pixels: int, geometry: str) -> None:
    model = build_fcn(tiny_spec(backbone=backbone, geometry=geometry))
    assert receptive_field(model.input, model.get_layer("fc7").output) == pixels


def test_receptive_fields_of_the_skips() -> None:
    model = build_fcn(tiny_spec())
    fields = [receptive_field(model.input, model.get_layer(f"block{block}_pool").output) for block in (3, 4)]
    assert fields == [44, 100]  # research on the paper's figure 3


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_the_halo_of_vgg16_is_224(variant: str) -> None:
    assert halo(build_fcn(tiny_spec(variant=variant))) == 224


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({"width": 0.05}, 200),
        ({"backbone": "alexnet", "width": 0.1}, 150),
        ({"backbone": "alexnet_torchvision", "upsampling": "deconv_learned", "width": 0.1}, 150),
        ({"backbone": "resnet50", "variant": "8s"}, 150),
        ({"backbone": "resnet50", "variant": "8s", "output_stride": 16}, 150),
    ],
    ids=["vgg16", "alexnet", "alexnet_torchvision", "resnet50", "resnet50-16"],
)
def test_the_halo_is_what_the_logits_depend_on(changes: dict[str, Any], near: int) -> None:
    """Seen by changing pixels: none beyond the halo matters to a cell of the grid, some inside of it do."""
    model = shared_model(**changes)
    margin = halo(model)
    assert near < margin <= 288
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 32, 1024, 3)).astype(np.float32)
    core = slice(512, 544)
    before = np.asarray(model(image))[0, :, core]
    for column, matters in ((512 - margin - 1, False), (544 + margin, False), (512 - near, True), (543 + near, True)):
        changed = image.copy()
        changed[:, :, column] += 100
        after = np.asarray(model(changed))[0, :, core]
        assert np.array_equal(before, after) != matters, column


@pytest.mark.parametrize(
    "layer",
    [LAYERS.GroupNormalization(1), LAYERS.SeparableConv2D(3, 3), LAYERS.UpSampling2D(2), LAYERS.Conv2DTranspose(3, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_nobody_described_is_refused(layer: LAYERS.Layer) -> None:
    image = keras.Input((32, 32, 3))
    with pytest.raises(ValueError, match=f"cells of a {type(layer).__name__} lie is unknown; give the type an entry"):
        locate(image, layer(image))


@pytest.mark.parametrize("backbone", ["mobilenetv3_large", "mobilenetv3_small"])
def test_statistics_of_the_whole_image_leave_no_halo(backbone: str) -> None:
    with pytest.raises(ValueError, match=r"squeeze_excite.*statistics of the whole image.*predict\.tile_pixels"):
        halo(shared_model(backbone=backbone, variant="8s"))


def test_the_pad_of_the_paper_leaves_no_halo() -> None:
    with pytest.raises(ValueError, match='only geometry "same" has tiles'):
        halo(build_fcn(tiny_spec(geometry="paper")))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_stream_of_every_backbone_meets(backbone: str) -> None:
    """build_fcn would raise otherwise; and the logits lie on the pixels."""
    model = shared_model(backbone=backbone, variant="8s")
    assert locate(model.input, model.output) == Place(1, 0)


def test_multiply_adds_by_hand() -> None:
    image = keras.Input((None, None, 3))
    x = LAYERS.Conv2D(8, 3, padding="same", strides=2)(image)
    x = LAYERS.DepthwiseConv2D(3, padding="same")(x)
    x = LAYERS.Conv2D(4, 1, groups=2)(x)
    x = Deconvolution(2, 4, 0.5, learned=True)(x)
    cells = 5 * 10
    assert count_multiply_adds(keras.Model(image, x), 10, 20) == cells * (9 * 3 * 8 + 9 * 8 + 4 * 4 + 16 * 4 * 4)


@pytest.mark.parametrize(
    ("changes", "giga"),
    [
        ({"geometry": "paper"}, 180.97),
        ({"geometry": "paper", "upsampling": "deconv_learned"}, 181.5),  # with the dense deconvolutions of the release
        ({"geometry": "paper", "upsampling": "deconv_learned", "variant": "32s"}, 181.4),
        ({}, 110.8),  # padded to 512
    ],
)
def test_multiply_adds_at_500_are_the_published_ones(
    changes: dict[str, str], giga: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_ray.models.fcn.he_normal", lambda *_: "zeros")  # 120 million random numbers take seconds
    model = build_fcn(ModelSpec(num_classes=21, **changes))
    assert count_multiply_adds(model, 500, 500) / 1e9 == pytest.approx(giga, abs=0.06)


@pytest.mark.parametrize(("backbone", "millions"), [("alexnet", 56.95), ("alexnet_torchvision", 57.09)])
def test_alexnet_has_57_million_parameters(backbone: str, millions: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_ray.models.fcn.he_normal", lambda *_: "zeros")
    model = build_fcn(ModelSpec(backbone=backbone, variant="32s", num_classes=21))
    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.01)
    assert tuple(model.get_layer("fc6").kernel.shape) == (6, 6, 256, 4096)
