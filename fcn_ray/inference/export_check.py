"""Load an exported network as the README says, in a process of its own, and apply it.

    python -P export_check.py keras|savedmodel|onnx NETWORK IMAGES.npz LOGITS.npz

A script that `fcn_ray.inference.export` runs by its path, not as a module: SavedModel and ONNX need no code of ours, so
none may be loaded here. IMAGES.npz holds float32 (N, H, W, 3) of 0..255, an array for each batch; so does LOGITS.npz.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

Apply = Callable[[np.ndarray], np.ndarray]


def load_keras(path: str) -> Apply:
    """A .keras file; our layers are known by name once they are imported."""
    import keras

    import fcn_ray.models.fcn  # noqa: F401

    model = keras.models.load_model(path)
    return lambda images: np.asarray(model(images))


def load_saved_model(path: str) -> Apply:
    """A SavedModel folder, by its serving signature."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)  # it owns the variables, the signature does not
    return lambda images: np.asarray(loaded.signatures["serving_default"](image=tf.constant(images))["logits"])


def load_onnx(path: str) -> Apply:
    """An ONNX file, in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"image": images})[0])


LOADERS: dict[str, tuple[Callable[[str], Apply], set[str]]] = {
    "keras": (load_keras, set()),
    "savedmodel": (load_saved_model, {"fcn_ray"}),
    "onnx": (load_onnx, {"fcn_ray", "keras", "tensorflow"}),
}
"""By format: how it is loaded, and the packages that it must not need."""


def main() -> None:
    """See the module."""
    kind, network, images_file, logits_file = sys.argv[1:]
    load, foreign = LOADERS[kind]
    apply = load(network)
    with np.load(images_file) as images:
        logits = [apply(images[name]) for name in images.files]
    if needed := foreign & set(sys.modules):
        sys.exit(f"{kind} was loaded with the help of {', '.join(sorted(needed))}, which it must not need")
    np.savez(logits_file, *logits)


if __name__ == "__main__":
    main()
