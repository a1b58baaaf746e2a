"""The fully convolutional network of Long, Shelhamer and Darrell (CVPR 2015), variants 32s, 16s and 8s.

Geometry "same": the image is padded to a multiple of 32, convolutions keep sizes, the scores are resized and cropped.
It gives the paper's network without its 100 pixels of padding, which cost 1.3 to 1.9 times the arithmetic.
"""

from __future__ import annotations

import math
from typing import Literal

import keras

from fcn_ray.config import STRIDE, ModelSpec
from fcn_ray.models.backbones import BACKBONES, he_normal, seed_of
from fcn_ray.models.layers import CropLike, PadToStride, Scale, SeededDropout, Tensor, Upsample

Precision = Literal["float32", "bfloat16"]

POLICIES: dict[str, str] = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras dtype policy of the layers, by precision; both keep their variables in float32."""

SCORED = {"32s": (32,), "16s": (32, 16), "8s": (32, 16, 8)}
"""Strides of the features that a variant scores, coarse to fine (paper, figure 3)."""

SCORE_NAMES = {32: "score_fr", 16: "score_pool4", 8: "score_pool3"}
"""Name of the score layer at each stride, as in the authors' release."""

SCALE_NAMES = {32: "scale_pool5", 16: "scale_pool4", 8: "scale_pool3"}
"""Name of the layer that scales the features of each stride before they are scored."""


def build_fcn(spec: ModelSpec, *, precision: Precision = "float32", seed: int = 0) -> keras.Model:
    """The network of `spec`: normalised float32 (N, H, W, 3) -> float32 logits (N, H, W, num_classes), any H, W >= 1.

    The same `spec` and `seed` give equal weights in every process. The score layers start at zero (paper, section 4.1),
    hence the first loss is ln(num_classes). With "bfloat16" the layers up to fc7 compute in bfloat16; variables,
    scores, upsampling and logits stay float32.

    Each level passes a `Scale` before the head reads it: 1 for a random backbone, whose features are about 1 from the
    start, and set by `load_backbone_weights` for a pretrained one, whose features are not.
    """
    policy = POLICIES[precision]
    images = keras.Input((None, None, 3), dtype="float32", name="image")
    padded = PadToStride(STRIDE, dtype="float32", name="pad")(images)
    backbone = BACKBONES[spec.backbone](padded, spec.width, seed=seed, dtype=policy)
    features = {s: Scale(dtype=policy, name=SCALE_NAMES[s])(backbone[s]) for s in SCORED[spec.variant]}
    features[STRIDE] = _convolutional_head(features[STRIDE], spec, policy, seed)
    scores = _fuse_scores(features, spec.num_classes)
    scores = Upsample(min(features), dtype="float32", name="upsample_to_image")(scores)
    logits = CropLike(dtype="float32", name="logits")([scores, images])
    return keras.Model(images, logits, name=f"fcn{spec.variant}_{spec.backbone}")


def count_parameters(model: keras.Model) -> int:
    """Trainable numbers in the network: 134,346,581 for VGG16 FCN-32s with 21 classes (paper: 134M)."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def _convolutional_head(x: Tensor, spec: ModelSpec, policy: str, seed: int) -> Tensor:
    """fc6 and fc7, the classifier's dense layers as 7x7 and 1x1 convolutions (paper, section 3.1)."""
    for name, size in (("fc6", 7), ("fc7", 1)):
        x = keras.layers.Conv2D(
            spec.fc_channels,
            size,
            padding="same",
            activation="relu",
            kernel_initializer=he_normal(name, seed),
            dtype=policy,
            name=name,
        )(x)
        drop = f"drop_{name}"
        x = SeededDropout(spec.dropout, seed_of(drop, seed), dtype=policy, name=drop)(x)
    return x


def _fuse_scores(features: dict[int, Tensor], num_classes: int) -> Tensor:
    """Scores (N, H / s, W / s, num_classes) summed over the levels, at the finest stride s of `features`.

    Coarse to fine: score a level with a 1x1 convolution, upsample what came before by two, add (paper, section 4.2).
    """
    fused = None
    for stride in sorted(features, reverse=True):
        name = SCORE_NAMES[stride]
        scores = keras.layers.Conv2D(num_classes, 1, kernel_initializer="zeros", dtype="float32", name=name)(
            features[stride]
        )
        if fused is not None:
            fused = Upsample(2, dtype="float32", name=f"upsample_to_{name}")(fused)
            scores = keras.layers.Add(dtype="float32", name=f"fuse_{name}")([fused, scores])
        fused = scores
    return fused
