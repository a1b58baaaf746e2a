"""How much memory a labelling job reserves for each of its processes: a formula of the bundle and the settings.

Bounds of what was measured (`tests/benchmarks/predict_memory.py`: TensorFlow, float32, geometry "same"), in bytes, of a
process's own memory: what it shares, as Ray's object store, is not in it. On top come one image above `PIXELS_ROOM`,
within `decode_memory`, what `chunk.bytes` does not count (paths in tables), and the padding of geometry "paper".
"""

from __future__ import annotations

from fcn_ray.bundle import Bundle
from fcn_ray.config import ModelSpec, SegmentConfig
from fcn_ray.inference.frozen import MOST_BYTES
from fcn_ray.inference.shares import Memory
from fcn_ray.inference.stages import PIXELS_ROOM

TASK = 200_000_000
"""A process that reads, decodes or commits, before it has images."""
PREDICTOR = 300_000_000
"""The same with Keras and its backend."""
GPU_PREDICTOR = 3_000_000_000
"""The same with the libraries of a GPU. Not measured."""
WEIGHT_COPIES = 3
"""Weights in memory at most, while they are loaded."""
FROZEN_COPIES = 13
"""Beside them, of those that are made constants, once the graph is compiled. Of them it is known only that they are
no more than all: AlexNet has a few, and is reserved too much."""
PIXEL = 32
"""Bytes of a pixel on its way into the network and as a class: uint8, normalised float32, masks of what is inside."""
FLOAT = 4
COPIES = 4
"""Of the largest features, or of the scores at full resolution, at the same moment."""

CHANNELS_PER_PIXEL = {
    "vgg16": 64.0,
    "alexnet": 6.0,
    "alexnet_torchvision": 4.0,
    "resnet50": 16.0,
    "mobilenetv3_large": 16.0,
    "mobilenetv3_small": 4.0,
}
"""Channels of a backbone's largest features over its stride squared, at width 1."""


def reserve(config: SegmentConfig, bundle: Bundle) -> Memory:
    """What the processes of a job may need; `predict.memory` is taken as it is.

    With a GPU the features are in its memory, and not in this; nothing is frozen there.
    """
    predict = config.predict
    frozen = FROZEN_COPIES * min(bundle.weights_bytes, MOST_BYTES)
    network = GPU_PREDICTOR if predict.gpus else PREDICTOR + frozen + _features(bundle.spec, config)
    return Memory(
        prepare=TASK + config.chunk.bytes + PIXELS_ROOM,
        predict=predict.memory or network + WEIGHT_COPIES * bundle.weights_bytes + PIXELS_ROOM,
        commit=TASK + PIXELS_ROOM // 3,  # masks have one byte where images have three
    )


def describe(memory: Memory) -> str:
    """One line of it."""
    predict, prepare, commit = (f"{count / 1e9:.1f} GB" for count in (memory.predict, memory.prepare, memory.commit))
    return f"{predict} for each actor, {prepare} for each task that decodes, {commit} for each that commits"


def _features(spec: ModelSpec, config: SegmentConfig) -> int:
    """Of the largest batch, which is one tile if that is larger."""
    pixels = max(config.predict.batch_pixels, config.predict.tile_pixels)
    channels = max(CHANNELS_PER_PIXEL[spec.backbone] * spec.width, spec.num_classes)
    return int(pixels * (PIXEL + FLOAT * COPIES * channels))
