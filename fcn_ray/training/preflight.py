"""What a training job is, checked on the driver before the cluster is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcn_ray import storage
from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.config import VARIANTS, ModelConfig, ModelSpec, Preprocessing, TrainConfig
from fcn_ray.errors import ConfigError, DataError, ForeignOutputError
from fcn_ray.labels import LabelSet
from fcn_ray.models.weight_files import IMAGENET, check_weights
from fcn_ray.training import ingest, order
from fcn_ray.training.checkpoints import list_checkpoints

CHECKED_PIECES, CHECKED_SAMPLES = 16, 16
"""Row groups, spread evenly over each set, and images of each that are decoded before the start; all others are checked
as they are read."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know; the same for every worker. Paths are absolute: workers run elsewhere."""

    config: TrainConfig
    spec: ModelSpec
    labels: LabelSet
    preprocessing: Preprocessing
    columns: ingest.Columns
    train_pieces: tuple[order.Piece, ...]
    val_pieces: tuple[order.Piece, ...]
    steps_per_epoch: int
    settings: str
    """Digest of what the weights depend on: a checkpoint with another one is not gone on from."""
    data_digest: str
    val_digest: str
    """Of the validation set; "" without one."""
    class_weights: tuple[float, ...] | None
    """Of the loss, by class id. None: it has none, or those of the frequencies, which `train` counts once connected."""


def prepare(config: TrainConfig) -> Job:
    """Check data, settings and the output folder; nothing is written.

    Raises ConfigError, DataError, SchemaError or ForeignOutputError that names the place, the value and the way out.
    """
    if (backend := os.environ.get("KERAS_BACKEND", "tensorflow")) != "tensorflow":
        raise ConfigError(f"KERAS_BACKEND is {backend}, but training runs on TensorFlow: unset it, or set tensorflow")
    config = _with_absolute_paths(config)
    columns = ingest.Columns(config.image_column, config.mask_column)
    train = ingest.open_collection(config.data, columns)
    val = ingest.open_collection(config.val, columns) if config.val else None
    labels = _find_labels(config, train)
    if train.n_rows < config.batch_size:
        raise DataError(f"{config.data} has {train.n_rows} images, fewer than batch_size {config.batch_size}")
    if val:
        ingest.agree(labels, val.labels, str(config.val))
    data_digest, val_digest = (_digest_pieces(collection) for collection in (train, val))
    spec, preprocessing, origin = _choose_network(config, labels)
    settings = _digest(
        # Not what may change on the way: the rate after a divergence, the precision, the workers, where things are.
        config.model_dump(mode="json", include={"augment", "loss", "batch_size", "seed", "max_pixels"})
        | {"spec": spec.model_dump(mode="json"), "preprocessing": preprocessing.model_dump(mode="json")}
        | {"origin": origin, "scales": config.model.scales, "labels": labels.to_json(), "data": data_digest}
    )
    _check_output(config, settings, val_digest)
    for collection in (train, val):
        if collection:
            _check_samples(collection.pieces, columns, labels, config.max_pixels)
    return Job(
        config=config.model_copy(update={"model": _as_config(spec, config.model)}),
        spec=spec,
        labels=labels,
        preprocessing=preprocessing,
        columns=columns,
        train_pieces=train.pieces,
        val_pieces=val.pieces if val else (),
        steps_per_epoch=train.n_rows // config.batch_size,
        settings=settings,
        data_digest=data_digest,
        val_digest=val_digest,
        class_weights=_given_class_weights(config, labels),
    )


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    weights = config.model.weights
    if weights and weights != IMAGENET:
        if not storage.local_path(weights).is_file():
            raise ConfigError(f"model.weights = {weights!r}: no such file; give one, {IMAGENET!r}, or null")
        weights = storage.absolute(weights)
    start = storage.absolute(config.model.start) if config.model.start else None
    return config.model_copy(
        update={
            "data": storage.absolute(config.data),
            "val": storage.absolute(config.val) if config.val else None,
            "out": storage.absolute(config.out),
            "model": config.model.model_copy(update={"weights": weights, "start": start}),
        }
    )


def _choose_network(config: TrainConfig, labels: LabelSet) -> tuple[ModelSpec, Preprocessing, str | None]:
    """The network to train, what its first layer expects, and the digest of the weights that it starts from."""
    settings = config.model
    if settings.start is not None:
        return _grow_from(load_bundle(settings.start), config, labels)
    preprocessing = check_weights(settings.weights, settings.backbone)
    origin = settings.weights
    if origin and origin != IMAGENET:
        origin = storage.digest_file(origin)
    return ModelSpec.from_config(settings, len(labels)), preprocessing, origin


def _as_config(spec: ModelSpec, settings: ModelConfig) -> ModelConfig:
    """The settings with the network that they came to, which a saved configuration must name."""
    origin = {"weights": settings.weights, "start": settings.start, "scales": settings.scales}
    return ModelConfig(**spec.model_dump(exclude={"num_classes"}), **origin)


def _grow_from(bundle: Bundle, config: TrainConfig, labels: LabelSet) -> tuple[ModelSpec, Preprocessing, str]:
    """What `_choose_network` gives, of a job that starts from a bundle: its network, or one with a finer variant."""
    settings = config.model
    if bundle.labels.names != labels.names:
        raise ConfigError(
            f"model.start {settings.start} knows the classes {list(bundle.labels.names)}, {config.data} has "
            f"{list(labels.names)}: start from a bundle of the same classes, or from weights"
        )
    for name in sorted(settings.model_fields_set & bundle.spec.model_fields_set - {"variant"}):
        if getattr(settings, name) != (given := getattr(bundle.spec, name)):
            raise ConfigError(
                f"model.{name} = {getattr(settings, name)!r}, but model.start {settings.start} has {given!r}: leave it "
                "out, since only the variant may change"
            )
    finer = "variant" in settings.model_fields_set
    spec = bundle.spec.model_copy(update={"variant": settings.variant if finer else bundle.spec.variant})
    if VARIANTS.index(spec.variant) < VARIANTS.index(bundle.spec.variant):
        raise ConfigError(
            f"model.variant {spec.variant} is coarser than the {bundle.spec.variant} of model.start {settings.start}: "
            f"a network grows {' -> '.join(VARIANTS)}"
        )
    return spec, bundle.preprocessing, bundle.digest


def _find_labels(config: TrainConfig, train: ingest.Collection) -> LabelSet:
    if config.classes:
        return LabelSet.from_names(config.classes)
    if train.labels is None:
        raise DataError(
            f"{config.data} does not name its classes in the Parquet metadata: "
            "give them in the order of their ids, as classes: [sky, road, ...]"
        )
    return train.labels


def _given_class_weights(config: TrainConfig, labels: LabelSet) -> tuple[float, ...] | None:
    weights = config.loss.class_weights
    if not isinstance(weights, tuple):
        return None
    if len(weights) != len(labels):
        raise ConfigError(
            f"loss.class_weights has {len(weights)} numbers for {len(labels)} classes: "
            f"give one for each of {list(labels.names)}, in this order"
        )
    return weights


def _digest_pieces(collection: ingest.Collection | None) -> str:
    pieces = collection.pieces if collection else ()
    return _digest([(p.key, p.row_group, p.n_rows, p.n_bytes) for p in pieces]) if pieces else ""


def _check_output(config: TrainConfig, settings: str, val_digest: str) -> None:
    """An existing run is only gone on from when asked to, and with the same settings."""
    if storage.is_file(config.out):
        raise ForeignOutputError(f"out = {config.out} is a file: choose a folder")
    found = list_checkpoints(config.out)
    if not found:
        known = {
            "checkpoints",
            "config.yaml",
            "divergence.json",
            "metrics.jsonl",
            "mlflow-run",
            "ray",
            "report.html",
            "tensorboard",
        }
        foreign = sorted({e.path.partition("/")[0] for e in storage.list_files(config.out)} - known)
        if foreign:
            raise ForeignOutputError(f"{config.out} holds {foreign[:3]}, not a training run: choose another --out")
        return
    if not config.resume:
        raise ForeignOutputError(
            f"{config.out} holds a training run of {found[-1].epoch} epochs: add --resume to go on, "
            "or choose another --out"
        )
    if found[-1].settings != settings:
        raise ForeignOutputError(
            f"{config.out} was trained with other settings or data: go on with those of {config.out}/config.yaml, "
            "or choose another --out"
        )
    if {val_digest, ""} >= {checkpoint.metrics.get("val_data", "") for checkpoint in found}:
        return
    raise ForeignOutputError(
        f"{config.out} was validated on other images than val = {config.val} holds now, and the best checkpoint is "
        f"chosen by that: go on with the `val` of {config.out}/config.yaml as it was, or choose another --out"
    )


def _check_samples(pieces: tuple[order.Piece, ...], columns: ingest.Columns, labels: LabelSet, max_pixels: int) -> None:
    for piece in _spread([piece for piece in pieces if piece.n_rows], CHECKED_PIECES):
        rows = _spread(range(piece.n_rows), CHECKED_SAMPLES)
        read = order.Read((piece,), np.array([[0, row] for row in rows], np.int32))
        for row in ingest.read_rows(read, columns).to_pylist():
            ingest.decode_sample(row, labels, max_pixels)


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of `values`, at even distances, the first and the last among them."""
    places = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))
    return [values[place] for place in places]


def _digest(value: Any) -> str:
    return storage.digest(json.dumps(value, sort_keys=True).encode())
