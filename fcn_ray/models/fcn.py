"""The fully convolutional network of Long, Shelhamer and Darrell (CVPR 2015), variants 32s, 16s and 8s.

Geometry "same": the image is padded to a multiple of 32, convolutions keep sizes, the scores are resized and cropped.
It gives the paper's network without its 100 pixels of padding, which cost 1.3 to 1.9 times the arithmetic. Geometry
"paper" is the release's, pad and crops included. Where cells lie, and so every crop, comes from the layers
(fcn_ray.models.coordinates).
"""

from __future__ import annotations

import math

import keras
import numpy as np

from fcn_ray.config import FC6_SIZE, STRIDE, ModelSpec, Precision, Preprocessing
from fcn_ray.models.backbones import BACKBONES, he_normal, seed_of
from fcn_ray.models.coordinates import locate
from fcn_ray.models.layers import CropLike, PadToStride, Scale, SeededDropout, Tensor
from fcn_ray.models.preprocessing import Normalise
from fcn_ray.models.upsampling import Deconvolution, Upsample, kernel_size

POLICIES: dict[str, str] = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras dtype policy of the layers, by precision; both keep their variables in float32."""

SCORE_NAMES = {32: "score_fr", 16: "score_pool4", 8: "score_pool3"}
"""Name of the score layer at each stride, as in the authors' release for VGG16."""

SCALE_NAMES = {32: "scale_pool5", 16: "scale_pool4", 8: "scale_pool3"}
"""Name of the layer that scales the features of each stride before they are scored."""

HEAD = ("pad", "scale_", "fc6", "fc7", "drop_", "score_", "fuse_", "upsample_", "crop_", "logits")
"""How the names of layers begin that are not the backbone's."""


def build_fcn(spec: ModelSpec, *, precision: Precision = "float32", seed: int | None = 0) -> keras.Model:
    """The network of `spec`: normalised float32 (N, H, W, 3) -> float32 logits (N, H, W, num_classes), any H, W >= 1.

    The same `spec` and `seed` give equal weights in every process; without a seed they are zeros, to be set. The score
    layers start at zero (paper, section 4.1), hence the first loss is ln(num_classes). With "bfloat16" the layers up to
    fc7 compute in bfloat16; variables, scores, upsampling and logits stay float32.

    Each level passes a `Scale` before the head reads it: 1 for a random backbone, whose features are about 1 from the
    start, and set by `load_backbone_weights` for a pretrained one, whose features are not.
    """
    policy = POLICIES[precision]
    images = keras.Input((None, None, 3), dtype="float32", name="image")
    padded = images if spec.geometry == "paper" else PadToStride(STRIDE, dtype="float32", name="pad")(images)
    backbone = BACKBONES[spec.backbone](padded, spec, seed=seed, dtype=policy)
    finest = int(spec.variant.removesuffix("s"))
    features = {
        # The coarsest level is scored as score_fr whatever its stride.
        stride: Scale(dtype=policy, name=SCALE_NAMES[STRIDE if stride == max(backbone) else stride])(cells)
        for stride, cells in backbone.items()
        if stride >= finest
    }
    features[max(features)] = _convolutional_head(features[max(features)], spec, policy, seed)
    scores = _fuse_scores(images, features, spec)
    scores = _upsample(images, scores, spec, "image")
    logits = CropLike(_offset(images, scores, None), dtype="float32", name="logits")([scores, images])
    return keras.Model(images, logits, name=f"fcn{spec.variant}_{spec.backbone}")


def take_raw_images(model: keras.Model, preprocessing: Preprocessing) -> keras.Model:
    """`model` with its normalisation inside, for programs that are not ours; it has the weights of `model` itself.

    RGB float32 (N, H, W, 3) of 0..255 -> float32 logits (N, H, W, num_classes), any N, H, W >= 1.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = False  # only training needs it, and other backends of Keras do not load it
    images = keras.Input((None, None, 3), dtype="float32", name="image")
    normalised = Normalise(preprocessing, dtype="float32", name="normalise")(images)
    return keras.Model(images, model(normalised), name=f"raw_{model.name}")


def count_parameters(model: keras.Model) -> int:
    """Trainable numbers in the network: 134,346,581 for VGG16 FCN-32s with 21 classes (paper: 134M)."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def backbone_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers with weights that `model` has from its backbone, from the image on."""
    return [layer for layer in model.layers if layer.weights and not layer.name.startswith(HEAD)]


def _convolutional_head(x: Tensor, spec: ModelSpec, policy: str, seed: int | None) -> Tensor:
    """fc6 and fc7, the classifier's dense layers as convolutions (paper, section 3.1)."""
    for name, size in (("fc6", FC6_SIZE.get(spec.backbone, 3)), ("fc7", 1)):
        keeps_size = spec.geometry == "same"
        if keeps_size and size % 2 == 0:  # Keras would put the odd cell after; before brings AlexNet's to the middle
            around = (size // 2, size - 1 - size // 2)
            x = keras.layers.ZeroPadding2D((around, around), dtype=policy, name=f"{name}_pad")(x)
        x = keras.layers.Conv2D(
            spec.fc_channels,
            size,
            padding="same" if keeps_size and size % 2 else "valid",
            activation="relu",
            kernel_initializer=he_normal(name, seed),
            dtype=policy,
            name=name,
        )(x)
        drop = f"drop_{name}"
        x = SeededDropout(spec.dropout, seed_of(drop, seed), dtype=policy, name=drop)(x)
    return x


def _fuse_scores(images: Tensor, features: dict[int, Tensor], spec: ModelSpec) -> Tensor:
    """Scores (N, H / s, W / s, num_classes) of all levels as one, at the finest stride s of `features`.

    Coarse to fine: score a level with a 1x1 convolution, upsample what came before by two, join (paper, section 4.2).
    """
    coarsest = max(features)
    fused = None
    for stride in sorted(features, reverse=True):
        name = SCORE_NAMES[STRIDE if stride == coarsest else stride]
        scores = keras.layers.Conv2D(spec.num_classes, 1, kernel_initializer="zeros", dtype="float32", name=name)(
            features[stride]
        )
        if fused is not None:
            fused = _upsample(images, fused, spec, name, like=scores)
            if spec.geometry == "paper":
                offset = _offset(images, scores, fused)
                scores = CropLike(offset, dtype="float32", name=f"crop_{name}")([scores, fused])
            scores = _join(fused, scores, spec, name)
        fused = scores
    return fused


def _join(coarse: Tensor, fine: Tensor, spec: ModelSpec, name: str) -> Tensor:
    """The sum of both, or a 1x1 convolution of both side by side, which starts as the sum."""
    if spec.fusion == "sum":
        return keras.layers.Add(dtype="float32", name=f"fuse_{name}")([coarse, fine])
    both = keras.layers.Concatenate(dtype="float32", name=f"fuse_{name}_both")([coarse, fine])
    return keras.layers.Conv2D(
        spec.num_classes, 1, kernel_initializer=_two_identities, dtype="float32", name=f"fuse_{name}"
    )(both)


@keras.saving.register_keras_serializable(package="fcn_ray")  # type: ignore[untyped-decorator]  # Keras has no types
def _two_identities(shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
    """(1, 1, 2 C, C): one identity above another."""
    return keras.ops.cast(np.tile(np.eye(shape[3], dtype=np.float32), (2, 1))[None, None], dtype or "float32")


def _upsample(images: Tensor, scores: Tensor, spec: ModelSpec, name: str, like: Tensor = None) -> Tensor:
    """`scores` at the stride of `like`, or at that of the image.

    Geometry "same": on the very cells of `like`. Geometry "paper": the release's map, to be cropped.
    """
    here, there = locate(images, scores), locate(images, images if like is None else like)
    factor = round(here.stride / there.stride)
    centre = (here.centre - there.centre) / there.stride
    size = kernel_size(factor, centre)
    name = f"upsample_to_{name}"
    if spec.upsampling != "bilinear":
        learned = spec.upsampling == "deconv_learned"
        place = centre if spec.geometry == "same" else None
        return Deconvolution(factor, size, place, learned, dtype="float32", name=name)(scores)
    if spec.geometry == "same":
        return Upsample(factor, centre, dtype="float32", name=name)(scores)
    # A deconvolution without padding blends its edge cells into nothing: zeros around them, and no more than it has.
    around = keras.layers.ZeroPadding2D(1, dtype="float32", name=f"{name}_pad")(scores)
    large = Upsample(factor, (size - 1) / 2 - factor // 2, dtype="float32", name=name)(around)
    before = factor - factor // 2
    cut = (before, 3 * factor - size - before)
    return keras.layers.Cropping2D((cut, cut), dtype="float32", name=f"{name}_cut")(large)


def _offset(images: Tensor, cells: Tensor, like: Tensor | None) -> int:
    """The cell of `cells` that lies where the first cell of `like` (None: the first pixel) does.

    The crops of the release, computed: 19 for 32s; 5, 27 for 16s; 5, 9, 31 for 8s; 18 for AlexNet.
    """
    here, there = locate(images, cells), locate(images, images if like is None else like)
    return round((there.centre - here.centre) / here.stride)
