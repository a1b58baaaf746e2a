"""The recipes on one GPU without Ray and TensorFlow: network, losses, augmentation and metrics of fcn_ray, on JAX.

python tests/benchmarks/recipe_gpu.py pack CAMVID.parquet CAMVID.npz
python tests/benchmarks/recipe_gpu.py modern CAMVID.npz OUT --weights VGG16.npz [--epochs 80] [--fc 1024] [--minutes 5]
python tests/benchmarks/recipe_gpu.py paper CAMVID.npz OUT --weights VGG16.npz [--epochs 20] [--fc 4096]

The loop is plain and its own; the settings of "modern" are those of camvid.yaml, those of "paper" of paper.py. What is
scored on the test images is the state with the best mean IoU on the validation images, once; the masks are left in OUT
as PNG files for `fcn-ray evaluate`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

SPLITS = ("train", "val", "test")
VOID = 255
CLASSES = 11


def pack(source: Path, target: Path) -> None:
    """The table as arrays: encoded images and labels one behind the other, their lengths, names and splits."""
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    columns = {name: table[name].to_pylist() for name in ("image", "mask", "name", "split")}
    arrays: dict[str, Any] = {"name": columns["name"], "split": columns["split"]}
    for name in ("image", "mask"):
        arrays[name] = np.frombuffer(b"".join(columns[name]), np.uint8)
        arrays[f"{name}_bytes"] = [len(cell) for cell in columns[name]]
    np.savez(target, **arrays)


def load(source: Path) -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
    """(name, image, label) by split."""
    from fcn_ray.images.codec import decode_image, decode_label

    packed = np.load(source)
    cells = {}
    for name in ("image", "mask"):
        ends = np.cumsum(packed[f"{name}_bytes"])
        data = packed[name].tobytes()
        cells[name] = [data[end - size : end] for end, size in zip(ends, packed[f"{name}_bytes"], strict=True)]
    found: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {split: [] for split in SPLITS}
    rows = zip(packed["name"].tolist(), packed["split"].tolist(), cells["image"], cells["mask"], strict=True)
    for name, split, image, label in rows:
        found[split].append((name, decode_image(image, 10**8).pixels, decode_label(label)))
    return found


class Training:
    """A network, its optimizer and the compiled step; weights are arguments, as JAX has it."""

    def __init__(self, model: Any, config: Any, steps: int, learned: frozenset[str], class_weights: Any = None) -> None:
        import jax
        import keras

        from fcn_ray.config import CAFFE_PREPROCESSING
        from fcn_ray.models.losses import build_loss
        from fcn_ray.models.preprocessing import normalise
        from fcn_ray.training.schedule import WarmupPoly

        self.model, settings = model, config.optimizer
        rate = WarmupPoly(settings.learning_rate, steps, settings.warmup_steps, settings.power)
        self.optimizer = keras.optimizers.SGD(
            rate, momentum=settings.momentum, weight_decay=settings.weight_decay or None, name="sgd"
        )
        layer = [variable.path.partition("/")[0] for variable in model.trainable_variables]
        self.optimizer.exclude_from_weight_decay(
            var_list=[
                v
                for v, name in zip(model.trainable_variables, layer, strict=True)
                if len(v.shape) < 2 or name in learned or name.startswith(("upsample_", "fuse_"))
            ]
        )
        self.optimizer.build(model.trainable_variables)
        rates = [settings.backbone_rate if name in learned else 1.0 for name in layer]
        loss_of = build_loss(config.loss, CLASSES, VOID, class_weights)

        def objective(trainable: Any, other: Any, images: Any, labels: Any) -> Any:
            inputs = normalise(images, CAFFE_PREPROCESSING)
            logits, other = model.stateless_call(trainable, other, inputs, training=True)
            return loss_of.combine(loss_of.terms(labels, logits)), other

        def step(state: Any, images: Any, labels: Any) -> Any:
            trainable, other, slots = state
            (loss, other), gradients = jax.value_and_grad(objective, has_aux=True)(trainable, other, images, labels)
            gradients = [gradient * rate for gradient, rate in zip(gradients, rates, strict=True)]
            trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
            return (trainable, other, slots), loss

        def predict(state: Any, images: Any) -> Any:
            inputs = normalise(images, CAFFE_PREPROCESSING)
            logits, _ = model.stateless_call(state[0], state[1], inputs, training=False)
            return logits.argmax(-1).astype("uint8")

        self.step, self.predict = jax.jit(step, donate_argnums=0), jax.jit(predict)
        self.state = tuple(
            [variable.value for variable in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables, self.optimizer.variables)
        )

    def masks(self, images: list[np.ndarray]) -> Iterator[np.ndarray]:
        """One at a time, whole."""
        for image in images:
            yield np.asarray(self.predict(self.state, image[None]))[0]

    def keep(self) -> None:
        """The weights of the state, in the model."""
        for variables, values in zip(
            (self.model.trainable_variables, self.model.non_trainable_variables), self.state[:2], strict=True
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)


def score(training: Training, rows: list[tuple[str, np.ndarray, np.ndarray]], out: Path | None = None) -> Any:
    """Scores over the rows; the masks go to `out` as PNG."""
    from fcn_ray.images.codec import encode_mask
    from fcn_ray.models.metrics import confusion_matrix, scores

    total = np.zeros((CLASSES, CLASSES + 1), np.int64)
    for (name, _, label), mask in zip(rows, training.masks([image for _, image, _ in rows]), strict=True):
        total += confusion_matrix(label, mask, CLASSES, VOID)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.png").write_bytes(encode_mask(mask))
    return scores(total)


def batches(rows: list[tuple[str, np.ndarray, np.ndarray]], config: Any, epoch: int, pool: ThreadPoolExecutor) -> Any:
    """Augmented batches of one epoch, in its order; what is left over is left out."""
    from fcn_ray.images.augmentation import augment, sample_rng

    order = np.random.default_rng((config.seed, epoch)).permutation(len(rows))

    def prepare(index: int) -> tuple[np.ndarray, np.ndarray]:
        name, image, label = rows[index]
        return augment(image, label, config.augment, sample_rng(config.seed, epoch, name), VOID)

    prepared, size = pool.map(prepare, order), config.batch_size
    for _ in range(len(rows) // size):
        images, labels = zip(*(next(prepared) for _ in range(size)), strict=True)
        yield np.stack(images), np.stack(labels)


def train(training: Training, data: Any, config: Any, every: int, deadline: float) -> dict[str, Any]:
    """All epochs, or those before the deadline: the state becomes the one that is best on the validation images."""
    import jax

    best: dict[str, Any] = {"val_mean_iou": -1.0}
    best_state, start = None, time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for epoch in range(1, config.epochs + 1):
            losses = []
            for images, labels in batches(data["train"], config, epoch, pool):
                training.state, loss = training.step(training.state, images, labels)
                losses.append(loss)
            late = time.monotonic() > deadline
            if epoch % every and epoch != config.epochs and not late:
                continue
            found = score(training, data["val"])
            seconds = time.monotonic() - start
            line = f"epoch {epoch}/{config.epochs}: loss {np.mean(jax.device_get(losses)):.4f}"
            print(f"{line}, val {found.mean_iou:.4f}, {found.pixel_accuracy:.4f}, {seconds:.0f} s", flush=True)
            if found.mean_iou > best["val_mean_iou"]:
                best = {"epoch": epoch, "val_mean_iou": found.mean_iou, "seconds": seconds}
                best_state = jax.device_get(training.state)
            if late:
                break
    training.state = best_state
    return best


def report(name: str, training: Training, data: Any, out: Path, best: dict[str, Any]) -> None:
    """Score the test images, once."""
    found = score(training, data["test"], out / f"masks {name}".replace(" ", "-"))
    print(json.dumps({"model": name, **best, "test": found.to_dict()}), flush=True)


def modern(options: argparse.Namespace, data: Any) -> None:
    """camvid.yaml, for so many epochs."""
    from fcn_ray.config import TrainConfig
    from fcn_ray.config_text import load_config

    flags = {"epochs": options.epochs, "model.fc_channels": options.fc, "batch_size": options.batch}
    flags |= {"optimizer.learning_rate": options.rate, "augment.crop": options.crop, "seed": options.seed}
    config = load_config(TrainConfig, options.settings, flags=PLACES | flags)
    model, learned = build(config, options.weights, options.precision)
    steps = config.epochs * (len(data["train"]) // config.batch_size)
    weights = median_weights(data["train"]) if options.median else None
    training = Training(model, config, steps, learned, weights)
    best = train(training, data, config, options.every, time.monotonic() + 60 * options.minutes)
    report(options.name or "modern", training, data, options.out, best)


def median_weights(rows: list[tuple[str, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Median frequency balancing: a class's frequency is its share of the valid pixels of the images that have it."""
    counts = np.stack([np.bincount(label.ravel(), minlength=VOID + 1)[:CLASSES] for _, _, label in rows])
    valid = counts.sum(axis=1, keepdims=True)
    frequency = counts.sum(axis=0) / ((counts > 0) * valid).sum(axis=0)
    return np.asarray(np.median(frequency) / frequency, np.float32)


PLACES: dict[str, Any] = {"data": "none", "val": "none", "out": "none", "augment.fill": (124, 117, 104)}
"""What a training needs or finds out by itself: here there are no files, and the preprocessing is always Caffe's."""


def build(config: Any, weights: Path | None, precision: str) -> tuple[Any, frozenset[str]]:
    """The network of a configuration, with pretrained kernels when there are some."""
    import keras

    from fcn_ray.config import ModelSpec
    from fcn_ray.models.fcn import build_fcn
    from fcn_ray.models.weights import load_backbone_weights

    keras.utils.set_random_seed(config.seed)
    spec = ModelSpec.from_config(config.model, CLASSES)
    model = build_fcn(spec, precision=precision, seed=config.seed)
    learned = load_backbone_weights(model, str(weights), spec.backbone, config.model.scales) if weights else []
    return model, frozenset(learned)


def paper(options: argparse.Namespace, data: Any) -> None:
    """The stages of paper.py, each for so many epochs; the next one starts from the best of the one before."""
    import keras

    from fcn_ray.config import TrainConfig
    from fcn_ray.config_text import load_config
    from fcn_ray.models.surgery import graft
    from tests.benchmarks.paper import RATE, RELEASE, STAGES

    kept: dict[str, Any] = {}
    for name in options.stages:
        variant, rate, before = STAGES[name]
        flags = RELEASE | {"model.variant": variant, "optimizer.learning_rate": rate * RATE, "epochs": options.epochs}
        scales = "features" if before else "paper"  # as in paper.py
        flags |= {"model.scales": scales, "model.fc_channels": options.fc, "model.weights": str(options.weights)}
        config = load_config(TrainConfig, flags=PLACES | flags)
        model, learned = build(config, None if before else options.weights, options.precision)
        if before:
            learned = frozenset(graft(model, kept[before], "vgg16", config.model.scales))
        training = Training(model, config, config.epochs * len(data["train"]), learned)
        minutes = options.minutes / len(options.stages)
        best = train(training, data, config, options.every, time.monotonic() + 60 * minutes)
        training.keep()
        kept[name] = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}
        report(name, training, data, options.out, best)


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["pack", "modern", "paper"])
    parser.add_argument("camvid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--settings", type=Path, default=Path(__file__).parent / "camvid.yaml")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--fc", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--crop", type=int, nargs=2, default=(256, 320))
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--median", action="store_true", help="class weights by median frequency")
    parser.add_argument("--name")
    parser.add_argument("--stages", nargs="+", default=["32s", "16s", "8s", "8s at once"])
    options = parser.parse_args()
    if options.action == "pack":
        pack(options.camvid, options.out)
        return
    partial({"modern": modern, "paper": paper}[options.action], options)(load(options.camvid))


if __name__ == "__main__":
    main()
