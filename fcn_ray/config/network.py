"""The network: what it is built from, and what its input becomes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fcn_ray.config.section import STRIDE, Positive, Section

Precision = Literal["float32", "bfloat16"]

Backbone = Literal["vgg16", "alexnet", "alexnet_torchvision", "resnet50", "mobilenetv3_large", "mobilenetv3_small"]

FC6_SIZE = {"vgg16": 7, "alexnet": 6, "alexnet_torchvision": 6}
"""Cells of the last features that the classifier's first dense layer spans, on a side: 7x7x512 for VGG16, 6x6x256 for
AlexNet. It becomes fc6 (paper, section 3.1)."""
PAPER_BACKBONES = tuple(FC6_SIZE)
"""Backbones whose classifier has dense layers: fc6 and fc7 are those, and the paper's geometry is defined for them."""
VARIANTS = ("32s", "16s", "8s")
"""Coarse to fine."""


class Architecture(Section):
    """Which FCN: all that shapes the network but the number of classes."""

    backbone: Backbone = "vgg16"
    """Classifier that is turned into a dense predictor. "alexnet" is the network of the paper (groups, local response
    normalisation), "alexnet_torchvision" the single tower that torchvision has weights for."""
    variant: Literal["32s", "16s", "8s"] = "8s"
    """Output stride: 32s has one score layer, 16s adds the skip at stride 16, 8s the one at stride 8 too."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Factor on the channels of every backbone layer; 1.0 is the published network."""
    fc_channels: Positive | None = None
    """Channels of fc6 and fc7; by default the classifier's 4096, and 512 for resnet50 and mobilenetv3."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Rate after fc6 and fc7, while training only."""
    fusion: Literal["sum", "concat"] = "sum"
    """How a skip joins the coarser scores: added (the paper), or side by side into a 1x1 convolution."""
    upsampling: Literal["bilinear", "deconv_fixed", "deconv_learned"] = "bilinear"
    """Bilinear resize, the paper's deconvolution with its bilinear kernel fixed, or learned from there."""
    geometry: Literal["same", "paper"] = "same"
    """"same" pads to a multiple of 32 and keeps sizes; "paper" pads by 100 and crops as the authors' release does."""
    output_stride: Literal[32, 16] = 32
    """Coarsest stride of the backbone; 16 dilates the last stage of resnet50 instead of striding."""

    @model_validator(mode="after")
    def _check_architecture(self) -> Architecture:
        if self.geometry == "paper" and self.backbone not in PAPER_BACKBONES:
            raise ValueError(f"geometry paper is for {', '.join(PAPER_BACKBONES)}, found {self.backbone}: use same")
        if self.backbone == "resnet50" and self.width != 1.0:
            raise ValueError(f"resnet50 has one width, found width {self.width:g}: leave it out")
        if self.output_stride == 16 and (self.backbone != "resnet50" or self.variant == "32s"):
            raise ValueError("output_stride 16 is for backbone resnet50 with variant 16s or 8s")
        return self

    @property
    def grid(self) -> int:
        """Pixels: images that pad to equal multiples of it may share a batch; 1 where only equal sizes may."""
        return STRIDE if self.geometry == "same" else 1


class ModelConfig(Architecture):
    """The network of a training job, and the weights it starts from."""

    weights: str | None = None
    """Classifier weights to start from: a .npz, .h5, .keras or .safetensors file with the layer names of
    keras-applications, torchvision or Caffe, "imagenet" (needs a network), or null for a random start."""
    start: str | None = None
    """Bundle to start from, instead of weights: of the same network, or of a coarser variant, which is grown."""
    scales: Literal["features", "paper"] = "features"
    """Factor on each level that is new before it is scored: one over the magnitude of pretrained features, or the
    release's at-once 1, 0.01 and 0.0001."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.weights and self.width != 1.0:
            raise ValueError(f"weights are for width 1.0, found width {self.width:g}: leave one of the two out")
        if self.weights and self.start:
            raise ValueError("weights and start are two ways to begin: leave one of them out")
        if self.scales == "paper" and not (self.weights or self.start):
            raise ValueError("scales paper is for pretrained features: give weights or start too, or leave it out")
        return self


class ModelSpec(Architecture):
    """All that is needed to build a network again; stored in a bundle (closed: no code, no class path)."""

    fc_channels: Positive = 4096
    """Channels of fc6 and fc7."""
    num_classes: int = Field(ge=2, le=255)

    @model_validator(mode="before")
    @classmethod
    def _default_fc_channels(cls, data: Any) -> Any:
        """The head is as wide as the classifier's own: 4096, or a quarter of ResNet50's channels."""
        if isinstance(data, dict) and data.get("backbone", "vgg16") not in PAPER_BACKBONES:
            return {"fc_channels": 512} | data
        return data

    @classmethod
    def from_config(cls, config: ModelConfig, num_classes: int) -> ModelSpec:
        """The network of a training job, once the number of classes is known."""
        shape = config.model_dump(exclude={"weights", "start", "scales"}, exclude_none=True)
        return cls(**shape, num_classes=num_classes)


class Preprocessing(Section):
    """How uint8 RGB becomes the network's float input: channel order, then (x - mean) / std. Goes with the weights."""

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """In the order of `channels`, in units of 0..255."""
    std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    """In the order of `channels`, in units of 0..255."""

    def mean_colour(self) -> tuple[int, int, int]:
        """RGB of 0..255: the colour nearest to the network's 0, with which a prediction pads."""
        first, second, third = (min(max(round(value), 0), 255) for value in self.mean)
        return (third, second, first) if self.channels == "BGR" else (first, second, third)


CAFFE_PREPROCESSING = Preprocessing(channels="BGR", mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
"""What the ImageNet kernels of VGG16 and ResNet50 in keras-applications were trained with."""
