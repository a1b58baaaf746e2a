"""What networks, losses and the predictor say on the backend of KERAS_BACKEND: python -m tests.models.backends FOLDER.

Keras has one backend for the life of a process, so test_backends.py starts one for each. The first one draws the
weights and leaves them in FOLDER, the others load them; each writes what it found to FOLDER/<backend>.npz.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fcn_ray import storage
from fcn_ray.bundle import Bundle, load_bundle, save_bundle
from fcn_ray.config import CAFFE_PREPROCESSING, LossConfig, ModelSpec, PredictConfig, Preprocessing
from fcn_ray.inference.predictor import Prediction, Predictor, compile_network
from fcn_ray.labels import LabelSet
from fcn_ray.models.classifiers import build_classifier
from fcn_ray.models.coordinates import count_multiply_adds, halo, receptive_field
from fcn_ray.models.fcn import build_fcn
from fcn_ray.models.losses import build_loss
from fcn_ray.models.serialisation import assign_weights, dump_weights
from fcn_ray.models.surgery import convolutionalize, grow
from fcn_ray.models.weights import load_backbone_weights
from tests.networks import tiny_model, tiny_spec

Found = Iterator[tuple[str, Any]]
"""Names, and what is compared under them."""

NETWORKS: dict[str, dict[str, Any]] = {
    "vgg16-8s": {},
    "vgg16-16s-concat-learned": {"variant": "16s", "fusion": "concat", "upsampling": "deconv_learned"},
    "vgg16-8s-fixed": {"upsampling": "deconv_fixed"},
    "vgg16-8s-paper": {"geometry": "paper"},
    "alexnet-32s": {"backbone": "alexnet", "variant": "32s"},
    "alexnet-16s-paper-learned": {
        "backbone": "alexnet",
        "variant": "16s",
        "geometry": "paper",
        "upsampling": "deconv_learned",
    },
    "alexnet_torchvision-8s-concat": {"backbone": "alexnet_torchvision", "fusion": "concat"},
    "alexnet_torchvision-32s-paper-fixed": {
        "backbone": "alexnet_torchvision",
        "variant": "32s",
        "geometry": "paper",
        "upsampling": "deconv_fixed",
    },
    "resnet50-8s-dilated": {"backbone": "resnet50", "output_stride": 16},
    "mobilenetv3_small-8s": {"backbone": "mobilenetv3_small"},
    "mobilenetv3_large-16s": {"backbone": "mobilenetv3_large", "variant": "16s"},
}
"""Changes to `tiny_spec`: every backbone, variant, geometry, fusion and upsampling, but not each with each."""

NORMALISATION = ("gamma", "beta", "moving_mean", "moving_variance")

LOSSES: list[dict[str, Any]] = [
    {"kind": "cross_entropy"},
    {"kind": "cross_entropy", "reduction": "sum"},
    {"kind": "focal"},
    {"kind": "focal", "gamma": 0.5},
    {"kind": "dice"},
]

TILE_PIXELS = 2**19
LARGE = 700, 900
"""Height and width in pixels of an image that takes tiles."""


def main(folder: Path) -> None:
    """Write all that is compared, by name."""
    found: dict[str, Any] = {"backend": keras.backend.backend()}
    if keras.backend.backend() == "jax":
        _draw_nothing()
    for part in (of_predictor, of_pixels, of_losses, of_weight_files, of_networks, of_surgery):
        if part is of_networks:
            # Up to here VGG16 and AlexNet; Keras itself imports TensorFlow to copy the layers of the other networks.
            found["preallocates"] = os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]
            found["modules"] = sorted({name.partition(".")[0] for name in sys.modules})
        found |= {f"{part.__name__.removeprefix('of_')}/{name}": value for name, value in part(folder)}
    np.savez(folder / f"{keras.backend.backend()}.npz", **{name: np.asarray(value) for name, value in found.items()})


def _draw_nothing() -> None:
    """Zeros for what Keras draws: files replace it all, and JAX compiles a program for each shape, a minute in all."""
    import jax

    def zeros(_key: Any, shape: tuple[int, ...], dtype: str, **_: Any) -> Any:
        return jax.numpy.asarray(np.zeros(shape, dtype))

    for name in ("uniform", "normal", "truncated_normal"):
        setattr(jax.random, name, zeros)


def images(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8 with structure of more than one size."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (*shape[:-2], -(-shape[-2] // 32), -(-shape[-1] // 32), 3))
    coarse = coarse.repeat(32, -3).repeat(32, -2)[..., : shape[-2], : shape[-1], :]
    return np.clip(coarse + rng.normal(scale=40, size=coarse.shape), 0, 255).astype(np.uint8)


def floats(*shape: int) -> np.ndarray:
    return (images(*shape) / np.float32(64) - 2).astype(np.float32)


def compiled(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a compiled program for one size of images."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: model(x, training=False))
    import jax

    states = [
        [variable.value for variable in part] for part in (model.trainable_variables, model.non_trainable_variables)
    ]
    forward = jax.jit(lambda states, x: model.stateless_call(*states, x, training=False)[0])
    return lambda x: forward(states, x)


def bundle(folder: Path, name: str, spec: ModelSpec, preprocessing: Preprocessing | None = None) -> Bundle:
    """The bundle `name` in `folder`, which the first process saves."""
    path = folder / name
    if not path.exists():
        model, rng = tiny_model(spec), np.random.default_rng(8)
        for weight in model.weights:
            if weight.path.endswith(NORMALISATION):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        labels = LabelSet.from_names([f"class {index}" for index in range(spec.num_classes)])
        save_bundle(str(path), model, spec, labels, preprocessing or Preprocessing(), {})
    return load_bundle(str(path))


def of_networks(folder: Path) -> Found:
    """Logits of all networks for an image of odd sides, and what is read off their layers."""
    for name, changes in NETWORKS.items():
        stored = bundle(folder, name, tiny_spec(**changes))
        model = stored.build()
        yield f"{name}/logits", compiled(model)(floats(2, 33, 65))
        yield f"{name}/same bytes", storage.digest(dump_weights(model)) == stored.weights_sha256
        yield f"{name}/multiply-adds", count_multiply_adds(model, 320, 352)
        if not name.startswith("mobilenet"):  # sees the whole image
            yield f"{name}/receptive field", receptive_field(model.input, model.get_layer("fc7").output)
            if stored.spec.geometry == "same":
                yield f"{name}/halo", halo(model)
    yield "one pixel/logits", compiled(bundle(folder, "vgg16-8s", tiny_spec()).build())(floats(1, 1, 1))


def of_pixels(folder: Path) -> Found:
    """build_predict_fn on pixels: BGR, two sizes in one batch, a core that is a part of the image."""
    stored = bundle(folder, "bgr", tiny_spec(backbone="alexnet_torchvision"), CAFFE_PREPROCESSING)
    predict = compile_network(stored, threads=0, precision="float32").predict
    sizes, cores = np.int32([[33, 50], [64, 64]]), np.int32([[0, 0, 33, 50], [5, 9, 40, 64]])
    masks, pixels, confidence = (keras.ops.convert_to_numpy(x) for x in predict(images(2, 64, 64), sizes, cores))
    yield "mask", np.concatenate([masks[0, :33, :50].ravel(), masks[1].ravel()])
    yield "class pixels", pixels
    yield "confidence", confidence


def of_predictor(folder: Path) -> Found:
    """The stage that actors run, on small images in batches and on a large one, whole and in tiles."""
    stored = bundle(folder, "predictor", tiny_spec(width=0.05))
    whole = Predictor(stored, PredictConfig(batch_pixels=2**21))
    in_tiles = Predictor(stored, PredictConfig(batch_pixels=2**21, tile_pixels=TILE_PIXELS))
    small = [images(*size, seed=seed) for seed, size in enumerate([(40, 50), (33, 64), (7, 9), (64, 64), (1, 1)])]
    large = [images(*LARGE)]
    assert len(in_tiles._plan(*LARGE)) > 1
    for name, predictor, group in (("small", whole, small), ("whole", whole, large), ("tiles", in_tiles, large)):
        predictions = predictor.predict(group)
        assert all(isinstance(one, Prediction) for one in predictions), predictions
        yield f"{name}/mask", np.concatenate([one.mask.ravel() for one in predictions])
        yield f"{name}/confidence", [(one.mean_confidence, one.min_class_confidence) for one in predictions]


def of_surgery(folder: Path) -> Found:
    """A classifier and its convolutional form; a network before and after it has grown."""
    weights = folder / "classifier.safetensors"
    classifier = build_classifier("alexnet", 10, width=0.05)
    if not weights.exists():
        weights.write_bytes(dump_weights(classifier))
    assign_weights(classifier, weights, str(weights))
    yield "classifier/logits", compiled(classifier)(floats(1, 227, 227))
    yield "convolutional/logits", compiled(convolutionalize(classifier))(floats(1, 260, 300))
    coarse = bundle(folder, "coarse", tiny_spec(variant="32s"))
    model, finer = grow(coarse.build(), coarse.spec, "16s")
    yield "grown/variant", finer.variant
    yield "grown/logits", compiled(model)(floats(2, 33, 65))


def of_weight_files(folder: Path) -> Found:
    """The weights of a network that starts from a classifier's."""
    file = folder / "backbone.npz"
    if not file.exists():
        weights = tiny_model(seed=9).weights
        np.savez(file, **{w.path: keras.ops.convert_to_numpy(w) for w in weights if w.path.startswith("block")})
    model = build_fcn(tiny_spec(), seed=None)
    yield "layers", load_backbone_weights(model, str(file), "vgg16")
    yield "digest", storage.digest(dump_weights(model))


def of_losses(folder: Path) -> Found:
    """Terms of two workers, and the loss of their sum."""
    rng = np.random.default_rng(0)
    labels, logits = rng.choice([0, 1, 2, 255], size=(2, 2, 9, 7)), rng.normal(size=(2, 2, 9, 7, 3)).astype(np.float32)
    for settings, weights in product(LOSSES, (None, (0.5, 3.0, 1.25))):
        loss = build_loss(LossConfig(**settings), 3, 255, weights)
        terms = [loss.terms(*worker) for worker in zip(labels, logits, strict=True)]
        name = json.dumps([settings, weights])
        yield f"{name}/terms", [keras.ops.convert_to_numpy(part) for part in terms]
        yield f"{name}/loss", keras.ops.convert_to_numpy(loss.combine(terms[0] + terms[1]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
