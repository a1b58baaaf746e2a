"""The bundle: a trained network as a folder, all that training hands to inference.

    model.json          what the network is: spec, classes, preprocessing, digests of the weights and of the rest;
                        written last
    model.safetensors   the weights, by variable path
    README.md           the model card, for people

The network is built by our code from a closed spec; nothing in a bundle is ever executed, and a changed bit is refused.
Importing this module and loading a bundle imports no Keras: only `save_bundle` and `Bundle.build` do.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from fcn_ray import __version__, storage
from fcn_ray.config import ModelSpec, Precision, Preprocessing, Section
from fcn_ray.errors import BundleError, DataError
from fcn_ray.labels import LabelSet
from fcn_ray.models.card import write_card
from fcn_ray.models.probe import Answer, ask

if TYPE_CHECKING:
    import keras

MANIFEST, WEIGHTS, CARD = "model.json", "model.safetensors", "README.md"
MAX_MANIFEST_BYTES = 10_000_000
"""A larger model.json is refused before it is parsed."""
MAX_WEIGHTS_BYTES = 16_000_000_000
"""Weights are read whole; VGG16 of four times the width has 8 GB."""

Byte = Annotated[int, Field(ge=0, le=255)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StoredLabels(Section):
    """A LabelSet in model.json."""

    names: tuple[str, ...]
    palette: tuple[tuple[Byte, Byte, Byte], ...]
    ignore_id: int

    @model_validator(mode="after")
    def _check(self) -> StoredLabels:
        self.to_label_set()
        return self

    def to_label_set(self) -> LabelSet:
        """The label set; DataError when it is none."""
        return LabelSet(self.names, self.palette, self.ignore_id)


class StoredWeights(Section):
    """What model.safetensors must be."""

    sha256: Digest
    bytes: int = Field(ge=0, le=MAX_WEIGHTS_BYTES)


class StoredAnswer(Section):
    """What the network made of the picture of fcn_ray.models.probe when it was saved."""

    mask: str = Field(pattern="^[A-Za-z0-9+/]{512}$")
    confidence: float = Field(ge=0, le=1)


class Manifest(Section):
    """The structure of model.json; every other key is an error."""

    format: Literal["fcn_ray.bundle/1"]
    spec: ModelSpec
    labels: StoredLabels
    preprocessing: Preprocessing
    weights: StoredWeights
    versions: dict[str, str]
    metadata: dict[str, JsonValue]
    precision: Precision = "float32"
    """What the network was validated in. No part of the digest: a run says itself which one it takes."""
    probe: StoredAnswer | None = None
    """Older bundles have none. No part of the digest."""
    checksum: Digest | None = None
    """Of all but `weights`, which vouch for themselves; older bundles have none."""

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if len(self.labels.names) != self.spec.num_classes:
            raise ValueError(f"{len(self.labels.names)} class names for spec.num_classes {self.spec.num_classes}")
        if not all(map(math.isfinite, self.preprocessing.mean + self.preprocessing.std)) or 0 in self.preprocessing.std:
            raise ValueError(f"preprocessing must be finite and divide by no zero, found {self.preprocessing}")
        return self

    def digest(self) -> str:
        """sha256 over what a mask depends on: not over metadata and versions.

        Over the keys that model.json holds, so that a spec that gains a setting leaves the digest of old bundles alone.
        """
        parts = self.model_dump(mode="json", include={"format", "spec", "labels", "preprocessing"}, exclude_unset=True)
        text = json.dumps(parts | {"weights": self.weights.sha256}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose model.json is well-formed and whose weights are those it names; cheap to send to workers."""

    folder: str
    spec: ModelSpec
    labels: LabelSet
    preprocessing: Preprocessing
    metadata: dict[str, Any]
    """What training tells about itself: data, metrics, configuration."""
    digest: str
    """Names the network: equal digests give equal masks."""
    weights_sha256: str
    weights_bytes: int
    precision: Precision
    """What the network was validated in."""
    answer: Answer | None = None
    """What the network made of the picture of fcn_ray.models.probe when it was saved; older bundles do not say."""

    def build(self, precision: Precision = "float32") -> keras.Model:
        """The network with its weights. Raises BundleError when they do not fit the spec or are not finite."""
        uri = storage.join(self.folder, WEIGHTS)
        with storage.on_disk(uri) as file:
            size = file.stat().st_size
            if 4 * self.spec.fc_channels**2 > size:  # fc7: a few bytes must not ask for the memory of a large network
                raise BundleError(
                    f"{uri} has {size} bytes, too few for fc_channels {self.spec.fc_channels}; get the bundle again"
                )
            self._check_unchanged(file)
            from fcn_ray.models.fcn import build_fcn
            from fcn_ray.models.serialisation import assign_weights

            model = build_fcn(self.spec, precision=precision, seed=None)
            assign_weights(model, file, uri)
            self._check_unchanged(file)  # what was read is what was checked
        return model

    def _check_unchanged(self, file: Path) -> None:
        """Raise BundleError unless the file, or copy, is what model.json names."""
        if (found := storage.digest_file(str(file))) != self.weights_sha256:
            raise BundleError(
                f"{storage.join(self.folder, WEIGHTS)} changed after the bundle was loaded: sha256 {found}, not "
                f"{self.weights_sha256}; put it back, or run the command again"
            )


class TakenError(BundleError):
    """A bundle cannot be written where something else, or another one, is."""


def load_bundle(folder: str) -> Bundle:
    """The bundle in `folder`, verified: the structure of model.json, and the digest of the weights.

    Raises BundleError that names the file, the value and the way out.
    """
    manifest = _read_manifest(storage.join(folder, MANIFEST))
    _check_digest(storage.join(folder, WEIGHTS), manifest.weights)
    return _to_bundle(folder, manifest)


def save_bundle(
    folder: str,
    model: keras.Model,
    spec: ModelSpec,
    labels: LabelSet,
    preprocessing: Preprocessing,
    metadata: dict[str, Any],
    precision: Precision = "float32",
) -> Bundle:
    """Write the bundle of `model` into `folder`; model.json comes last, so that a bundle is whole or not there.

    A bundle of the same digest that is there already is kept. Raises BundleError when another one is, when a weight is
    not finite, or when `model`, `spec` and `labels` do not belong together.
    """
    from fcn_ray.models.prediction import build_predict_fn
    from fcn_ray.models.serialisation import dump_weights

    if model.output_shape[-1] != spec.num_classes:
        raise BundleError(
            f"the network has {model.output_shape[-1]} classes, its spec {spec.num_classes}: "
            "save a network with the spec that it was built from"
        )
    data = dump_weights(model)
    weights = {"sha256": storage.digest(data), "bytes": len(data)}
    parts = (spec, labels, preprocessing, weights, metadata, precision)
    _parse_manifest(_manifest_text(*parts), storage.join(folder, MANIFEST))  # before the network is asked anything
    answer = ask(build_predict_fn(model, preprocessing))
    if not math.isfinite(answer.confidence):
        raise BundleError(
            "the network does not answer a drawn picture with numbers: its weights are finite, but too large"
        )
    text = _manifest_text(*parts, answer)
    manifest = _parse_manifest(text, storage.join(folder, MANIFEST))
    bundle = _to_bundle(folder, manifest)
    if not storage.is_file(storage.join(folder, MANIFEST)):
        _put_weights(storage.join(folder, WEIGHTS), data)
        storage.replace(storage.join(folder, CARD), _card(bundle, manifest.versions))
        if storage.put_if_absent(storage.join(folder, MANIFEST), text):
            return bundle
    return _existing(bundle)


def grow(
    bundle: Bundle, variant: str, *, precision: Precision = "float32", seed: int = 0
) -> tuple[keras.Model, ModelSpec]:
    """The network of `bundle` with a finer `variant` ("16s" or "8s"), and its spec: see fcn_ray.models.surgery.grow."""
    from fcn_ray.models import surgery

    return surgery.grow(bundle.build(), bundle.spec, variant, precision=precision, seed=seed)


def _put_weights(uri: str, data: bytes) -> None:
    """Store the weights, unless the same ones are there from a save that was interrupted."""
    if not storage.put_if_absent(uri, data) and storage.digest_file(uri) != storage.digest(data):
        raise TakenError(f"{uri} holds other weights and no {MANIFEST} beside it: delete it, or choose another folder")


def _card(bundle: Bundle, versions: dict[str, str]) -> bytes:
    card = write_card(bundle.spec, bundle.labels, bundle.preprocessing, bundle.metadata, versions, bundle.digest)
    return card.encode()


def _existing(bundle: Bundle) -> Bundle:
    """The bundle that is in the folder of `bundle` already, if it is the same network."""
    try:
        found = load_bundle(bundle.folder)
    except BundleError as error:
        raise TakenError(str(error)) from error
    if found.digest != bundle.digest:
        raise TakenError(
            f"{bundle.folder} holds another bundle (digest {found.digest[:12]}, this one is {bundle.digest[:12]}); "
            "bundles are never overwritten: choose another folder"
        )
    return found


def _to_bundle(folder: str, manifest: Manifest) -> Bundle:
    return Bundle(
        folder=folder,
        spec=manifest.spec,
        labels=manifest.labels.to_label_set(),
        preprocessing=manifest.preprocessing,
        metadata=manifest.metadata,
        digest=manifest.digest(),
        weights_sha256=manifest.weights.sha256,
        weights_bytes=manifest.weights.bytes,
        precision=manifest.precision,
        answer=Answer(**manifest.probe.model_dump()) if manifest.probe else None,
    )


def _manifest_text(
    spec: ModelSpec,
    labels: LabelSet,
    preprocessing: Preprocessing,
    weights: dict[str, Any],
    metadata: dict[str, Any],
    precision: Precision,
    answer: Answer | None = None,
) -> bytes:
    """The content of model.json."""
    packages = ("keras", "numpy", "safetensors")
    content = {
        "format": "fcn_ray.bundle/1",
        "spec": spec.model_dump(mode="json"),
        "labels": {"names": labels.names, "palette": labels.palette, "ignore_id": labels.ignore_id},
        "preprocessing": preprocessing.model_dump(mode="json"),
        "weights": weights,
        "versions": {"fcn_ray": __version__, "python": platform.python_version()} | {p: version(p) for p in packages},
        "metadata": metadata,
        "precision": precision,
        "probe": answer and asdict(answer),
    }
    try:
        checksum = _checksum(json.dumps(content, ensure_ascii=False, allow_nan=False))
        return (json.dumps(content | {"checksum": checksum}, indent=2, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise BundleError(f"metadata cannot be stored as JSON ({error}): pass finite numbers, text, lists") from error


def _checksum(text: str | bytes) -> str:
    """sha256 over what model.json says, numbers as they are spelled, whatever its layout."""
    content = json.loads(text, parse_float=str, parse_int=str)
    rest = {key: value for key, value in content.items() if key not in {"weights", "checksum"}}
    return storage.digest(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def _read_manifest(uri: str) -> Manifest:
    if not storage.is_file(uri):
        raise BundleError(f"{uri} does not exist; expected the folder of a bundle, as `fcn-ray train` leaves it")
    if (size := storage.stat(uri).size) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{uri} has {size} bytes, more than {MAX_MANIFEST_BYTES}: is it the right file?")
    return _parse_manifest(storage.read_bytes(uri), uri)


def _parse_manifest(text: bytes, uri: str) -> Manifest:
    manifest = _validate_manifest(text, uri)
    if manifest.checksum is not None and manifest.checksum != _checksum(text):
        raise BundleError(
            f"{uri} has changed since it was written (its checksum does not fit): get the bundle again; "
            "if you changed it on purpose, delete the checksum from it"
        )
    return manifest


def _validate_manifest(text: bytes, uri: str) -> Manifest:
    try:
        return Manifest.model_validate_json(text, strict=True)
    except DataError as error:  # from LabelSet
        raise BundleError(f"{uri}: {error}; get the bundle again") from error
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise BundleError(f"{uri} is not JSON, it begins with {text[:40]!r}; get the bundle again") from error
        problems = "; ".join(_describe(dict(problem)) for problem in error.errors()[:5])
        raise BundleError(f"{uri}: {problems}; get the bundle again, or use the fcn_ray that wrote it") from error


def _describe(problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "the whole"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if problem["type"] == "missing":
        return f"{key}: required, but not there"
    return f"{key} = {str(problem['input'])[:60]}: {problem['msg'].removeprefix('Value error, ')}"


def _check_digest(uri: str, expected: StoredWeights) -> None:
    if not storage.is_file(uri):
        raise BundleError(f"{uri} does not exist, but {MANIFEST} names it: get the whole bundle again")
    if (size := storage.stat(uri).size) != expected.bytes:
        raise BundleError(f"{uri} has {size} bytes, {MANIFEST} says {expected.bytes}: get the bundle again")
    if (found := storage.digest_file(uri)) != expected.sha256:
        raise BundleError(f"{uri} has sha256 {found}, {MANIFEST} says {expected.sha256}: get the bundle again")
