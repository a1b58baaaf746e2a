"""A bundle for speed: FCN-8s on a quarter of VGG16's channels, fc 256, 11 classes, random weights.

python tests/benchmarks/small_bundle.py OUT
"""

from __future__ import annotations

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np

from fcn_ray.bundle import save_bundle
from fcn_ray.config import CAFFE_PREPROCESSING, ModelSpec
from fcn_ray.labels import LabelSet
from fcn_ray.models.fcn import build_fcn


def main() -> None:
    """Build it, give score layers and biases values (they start at zero, and what adds zeros is left out), save it."""
    spec = ModelSpec(width=0.25, fc_channels=256, num_classes=11)
    model = build_fcn(spec)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        started = layer.get_weights()
        if layer.name.startswith("score"):
            layer.set_weights([rng.normal(size=w.shape) / 100 for w in started])
        elif started:
            layer.set_weights([*started[:-1], rng.normal(size=started[-1].shape) / 10])
    labels = LabelSet.from_names([f"class-{i}" for i in range(spec.num_classes)])
    print(save_bundle(sys.argv[1], model, spec, labels, CAFFE_PREPROCESSING, {}).digest)


if __name__ == "__main__":
    main()
