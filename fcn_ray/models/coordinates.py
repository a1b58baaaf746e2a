"""Where a cell lies, which pixels it sees and what the network costs: read off the layers, not typed in.

Each layer is one affine step along an axis; steps are composed from the image to a feature map (places, crops) or from
the logits back to the image (receptive field, halo), as coord_map does in the authors' release. Rows and columns are
treated alike: every layer here is square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from fcn_ray.config import STRIDE
from fcn_ray.models.layers import (
    CeilMaxPooling,
    CropLike,
    LocalResponseNormalization,
    PadToStride,
    Scale,
    SeededDropout,
    Tensor,
)
from fcn_ray.models.preprocessing import Normalise
from fcn_ray.models.upsampling import Deconvolution, Upsample


@dataclass(frozen=True, slots=True)
class Step:
    """A layer: output cell i reads the input cells at most `reach` from `stride * i + offset`."""

    stride: float = 1.0
    offset: float = 0.0
    reach: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Cell i of a map has its centre `stride * i + centre` pixels after the centre of the image's first pixel."""

    stride: float = 1.0
    centre: float = 0.0

    def after(self, step: Step) -> Place:
        """Place of a layer's output, when `self` is that of its input."""
        return Place(self.stride * step.stride, self.centre + self.stride * step.offset)


def locate(image: Tensor, cells: Tensor) -> Place:
    """Place of the KerasTensor `cells` (N, H, W, C) in the input `image` that it is computed from.

    Raises ValueError where streams are merged whose cells do not lie at the same places.
    """
    places = {id(image): Place()}
    for layer in _operations(keras.Model(image, cells)):
        step = _step(layer)
        known = [places[id(tensor)] for tensor in _read_by(layer) if id(tensor) in places]
        if math.isinf(step.reach) or not known:  # a number for the whole map lies nowhere
            continue
        if len(set(known)) > 1:
            raise ValueError(f"layer {layer.name} merges cells of different places: {known}")
        places[id(layer.output)] = known[0].after(step)
    return places[id(cells)]


def receptive_field(image: Tensor, cells: Tensor) -> int:
    """Pixels along one side of the square that one cell of `cells` sees: 404 for fc7 of FCN-VGG16 (paper, table 1)."""
    first, last = _pixels_read(keras.Model(image, cells), 0, 0)
    return last - first + 1


def halo(model: keras.Model) -> int:
    """Pixels around a region on the grid of 32 that decide the region's logits, as a multiple of 32: 224 for VGG16.

    A tile with this margin gives the logits of the whole image. Raises ValueError for a network in which every pixel
    depends on the whole image, or which pads by itself around it: no margin is enough there.
    """
    if not any(isinstance(layer, PadToStride) for layer in model.layers):
        raise ValueError('geometry "paper" pads every image by 100 pixels, a tile too: only geometry "same" has tiles')
    far = 64 * STRIDE  # a region well inside a large image, any will do
    first, last = _pixels_read(model, far, far + STRIDE - 1)
    margin = max(far - first, last - (far + STRIDE - 1))
    return -(-margin // STRIDE) * STRIDE


def count_multiply_adds(model: keras.Model, height: int, width: int) -> int:
    """Multiply-adds of all convolutions and deconvolutions for one image of `height` x `width` pixels."""
    shapes: dict[int, tuple[int, ...]] = {id(model.input): (1, height, width, 3)}
    total = 0
    for layer in _operations(model):
        inputs = [shapes[id(tensor)] for tensor in _tensors(layer.input)]
        shape = inputs[0]
        if isinstance(layer, keras.layers.Layer):
            shape = layer.compute_output_shape(inputs if isinstance(layer.input, list) else shape)
        shapes[id(layer.output)] = shape
        total += _multiply_adds(layer, inputs[0], shape)
    return total


def _pixels_read(model: keras.Model, first: int, last: int) -> tuple[int, int]:
    """First and last pixel, along one axis, that the output cells `first` to `last` depend on."""
    ranges = {id(model.output): (first, last)}
    for layer in reversed(_operations(model)):
        if id(layer.output) not in ranges:
            continue
        low, high = ranges[id(layer.output)]
        step = _step(layer)
        if math.isinf(step.reach):
            raise ValueError(
                f"layer {layer.name} takes statistics of the whole image, so that no tile gives its mask: predict such "
                "images whole (predict.tile_pixels), or use a network without it (vgg16, alexnet, resnet50)"
            )
        low = math.ceil(step.stride * low + step.offset - step.reach)
        high = math.floor(step.stride * high + step.offset + step.reach)
        for tensor in _read_by(layer):
            known = ranges.get(id(tensor), (low, high))
            ranges[id(tensor)] = min(known[0], low), max(known[1], high)
    return ranges[id(model.input)]


def _operations(model: keras.Model) -> list[keras.Operation]:
    """The layers after the input, and operations between them such as x + 3, each behind those that it reads."""
    return [layer for layer in model.operations if not isinstance(layer, keras.layers.InputLayer)]


def _tensors(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _read_by(layer: keras.Operation) -> list[Tensor]:
    """The tensors whose values matter to `layer`; of the second input of a crop only the size does."""
    tensors = _tensors(layer.input)
    return tensors[:1] if isinstance(layer, CropLike) else tensors


def _step(layer: keras.Operation) -> Step:
    """The geometry of `layer`; ValueError for a type that nobody has told this module about."""
    for kind in type(layer).__mro__:
        if kind in STEPS:
            return STEPS[kind](layer)
    # MobileNetV3 writes x + 3 and x * 1/6 into its graph, which are operations and no layers.
    if isinstance(layer, CELLWISE) or (
        not isinstance(layer, keras.layers.Layer) and type(layer).__name__ in ("Add", "Multiply")
    ):
        return Step()
    raise ValueError(
        f"layer {layer.name}: where the cells of a {type(layer).__name__} lie is unknown; give the type an entry in "
        "STEPS or CELLWISE of fcn_ray/models/coordinates.py"
    )


def _window(layer: Any) -> Step:
    """A convolution or pooling: `size` cells, of which `before` lie before the first."""
    size, stride = _size(layer), layer.strides[0] if isinstance(layer.strides, tuple) else layer.strides
    # "same": TensorFlow's rule for sizes that are multiples of the stride, which the grid makes them.
    before = max(size - stride, 0) // 2 if layer.padding == "same" else 0
    return Step(stride, (size - 1) / 2 - before, (size - 1) / 2)


def _size(layer: Any) -> int:
    """Cells along one side that a convolution or pooling spans."""
    side: int = layer.pool_size[0] if hasattr(layer, "pool_size") else layer.kernel_size[0]
    return (side - 1) * getattr(layer, "dilation_rate", (1,))[0] + 1


STEPS: Mapping[type, Callable[[Any], Step]] = {
    keras.layers.Conv2D: _window,
    keras.layers.DepthwiseConv2D: _window,
    keras.layers.MaxPooling2D: _window,
    CeilMaxPooling: _window,
    keras.layers.ZeroPadding2D: lambda layer: Step(offset=-layer.padding[0][0]),
    keras.layers.Cropping2D: lambda layer: Step(offset=layer.cropping[0][0]),
    CropLike: lambda layer: Step(offset=layer.offset),
    # Blended from the cells nearer than one; places are multiples of half an output cell.
    Upsample: lambda layer: Step(1 / layer.factor, -layer.centre / layer.factor, 1 - 0.5 / layer.factor),
    Deconvolution: lambda layer: Step(1 / layer.factor, -layer.centre / layer.factor, 1 - 0.5 / layer.factor),
    keras.layers.AveragePooling2D: _window,
    keras.layers.GlobalAveragePooling2D: lambda layer: Step(reach=math.inf),
}
"""Geometry by type of layer, the most derived first."""

CELLWISE = (
    PadToStride,
    LocalResponseNormalization,
    Normalise,
    Scale,
    SeededDropout,
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.BatchNormalization,
    keras.layers.Concatenate,
    keras.layers.Multiply,
    keras.layers.ReLU,
)
"""Layers whose output cell lies where the input cell does, and needs no other."""


def _multiply_adds(layer: keras.Operation, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> int:
    each = 0
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        each = math.prod(layer.kernel_size)
    elif isinstance(layer, keras.layers.Conv2D):
        each = math.prod(layer.kernel_size) * inputs[-1] // layer.groups
    elif isinstance(layer, Deconvolution):  # counted from what it reads
        return math.prod(inputs) * int(layer.kernel_size) ** 2 * (outputs[-1] if layer.learned else 1)
    return math.prod(outputs) * each
