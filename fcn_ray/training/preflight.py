"""What a training job is, checked on the driver before the cluster is touched."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from fcn_ray import storage
from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.config import VARIANTS, AugmentConfig, ModelConfig, ModelSpec, Preprocessing, TrainConfig
from fcn_ray.errors import ConfigError, DataError, ForeignOutputError
from fcn_ray.labels import LabelSet
from fcn_ray.models.weight_files import IMAGENET, check_weights
from fcn_ray.training import ingest, order
from fcn_ray.training.checkpoints import list_checkpoints
from fcn_ray.training.samples import check_classes, check_samples

BLACK = (0, 0, 0)
"""What crops were padded with, before there was a setting for it."""


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
    """Of the sizes of all row groups, ".", and of the content of some rows."""
    val_digest: str
    """Of the validation set, likewise; "" without one."""
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
    labels = _find_labels(config, train, val)
    if train.n_rows < config.batch_size:
        raise DataError(f"{config.data} has {train.n_rows} images, fewer than batch_size {config.batch_size}")
    spec, preprocessing, origin = _choose_network(config, labels)
    config = config.model_copy(update={"augment": _with_colour(config.augment, preprocessing)})
    sizes = [_digest_sizes(collection) for collection in (train, val)]
    contents = [check_samples(collection, columns, labels, config.max_pixels) for collection in (train, val)]
    check_classes(config.data, contents[0], train.n_rows, labels)
    data_digest, val_digest = (_joined(size, content.digest) for size, content in zip(sizes, contents, strict=True))
    windows = order.WINDOW_BYTES if order.has_heavy_windows(train.pieces) else None
    settings, before = (
        _joined(_digest_settings(changed, labels, spec, preprocessing, origin, sizes[0], limit), contents[0].digest)
        for changed, limit in ((config, windows), (_as_before(config), None))
    )
    _check_output(config, settings, before, val_digest, windows)
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


def _find_labels(config: TrainConfig, train: ingest.Collection, val: ingest.Collection | None) -> LabelSet:
    sets = [(config.data, train)] + ([(str(config.val), val)] if val else [])
    labels = ingest.find_labels(config.classes, sets)
    if labels is None:
        raise DataError(
            f"{config.data} does not name its classes in the Parquet metadata: "
            "give them in the order of their ids, as classes: [sky, road, ...]"
        )
    return labels


def _with_colour(augment: AugmentConfig, preprocessing: Preprocessing) -> AugmentConfig:
    """The settings with the colour that they come to, so that the saved ones name it."""
    return augment.model_copy(update={"fill": preprocessing.mean_colour()}) if augment.fill == "mean" else augment


def _as_before(config: TrainConfig) -> TrainConfig:
    """What `config` meant before crops were padded with the mean."""
    return config.model_copy(update={"augment": config.augment.model_copy(update={"fill": BLACK})})


def _digest_settings(
    config: TrainConfig,
    labels: LabelSet,
    spec: ModelSpec,
    preprocessing: Preprocessing,
    origin: str | None,
    data_sizes: str,
    window_bytes: int | None,
) -> str:
    """Of what the weights depend on, but not of what may change on the way: the rate after a divergence, the precision,
    the workers, where things are. `window_bytes` are in it where the order of the images depends on them."""
    values = config.model_dump(mode="json", include={"augment", "loss", "batch_size", "seed", "max_pixels"})
    if config.augment.fill == BLACK:
        del values["augment"]["fill"]  # as it was when there was no other: such runs can be gone on with
    if window_bytes is not None:
        values["window_bytes"] = window_bytes
    return _digest(
        values
        | {"spec": spec.model_dump(mode="json"), "preprocessing": preprocessing.model_dump(mode="json")}
        | {"origin": origin, "scales": config.model.scales, "labels": labels.to_json(), "data": data_sizes}
    )


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


def _digest_sizes(collection: ingest.Collection | None) -> str:
    pieces = collection.pieces if collection else ()
    return _digest([(p.key, p.row_group, p.n_rows, p.n_bytes) for p in pieces]) if pieces else ""


def _joined(digest: str, content: str) -> str:
    """A digest of settings or sizes, and the one of content, which runs of before do not have."""
    return f"{digest}.{content}" if content else digest


def _is_same(stored: str, now: str) -> bool:
    """Whether the stored one of two joined digests says the same, as far as it goes."""
    return stored in (now, now.partition(".")[0])


def _check_output(config: TrainConfig, settings: str, before: str, val_digest: str, window_bytes: int | None) -> None:
    """An existing run is only gone on from when asked to, and with the same settings.

    `before` is the digest of the same settings when crops were padded with black and windows had any size in bytes.
    """
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
        foreign = sorted({e.path.partition("/")[0] for e in storage.list_files(config.out, lambda left: None)} - known)
        if foreign:
            raise ForeignOutputError(f"{config.out} holds {foreign[:3]}, not a training run: choose another --out")
        return
    if not config.resume:
        raise ForeignOutputError(
            f"{config.out} holds a training run of {found[-1].epoch} epochs: add --resume to go on, "
            "or choose another --out"
        )
    stored = found[-1].settings
    if not _is_same(stored, settings) and _is_same(stored, before):
        padding = f"padded small images with black, not with {list(config.augment.fill)}"
        raise ForeignOutputError(
            f"{config.out} was begun by a version of fcn_ray that read this data in another order, since a window of "
            f"it could be larger than {window_bytes / 10**6:.0f} MB: finish it with that version, or choose another "
            "--out"
            if window_bytes
            else f"{config.out} was begun by a version of fcn_ray that {padding}: "
            "go on with --set augment.fill=[0,0,0], or choose another --out"
        )
    if not _is_same(stored, settings):
        raise ForeignOutputError(
            f"{config.out} was trained with other settings or data: go on with those of {config.out}/config.yaml, "
            "or choose another --out"
        )
    scored_on = {checkpoint.metrics.get("val_data", "") for checkpoint in found} - {""}
    if all(_is_same(digest, val_digest) for digest in scored_on):
        return
    raise ForeignOutputError(
        f"{config.out} was validated on other images than val = {config.val} holds now, and the best checkpoint is "
        f"chosen by that: go on with the `val` of {config.out}/config.yaml as it was, or choose another --out"
    )


def _digest(value: Any) -> str:
    return storage.digest(json.dumps(value, sort_keys=True).encode())
