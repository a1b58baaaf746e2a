"""Export: a bundle's network as one file or folder for programs that are not ours, compared with the bundle.

    name.keras   Keras; `import fcn_ray.models.fcn` before keras.models.load_model, which then knows our layers
    name.onnx    ONNX Runtime and what else reads ONNX; no code of ours
    folder       TensorFlow SavedModel, for TensorFlow and its servers; no code of ours

Each has the normalisation inside: RGB float32 (N, H, W, 3) of 0..255, called "image", in; float32 (N, H, W, K), called
"logits", out; any N, H, W >= 1. The classes are in labels.json (ONNX: in the model's metadata).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_ray.bundle import Bundle, load_bundle
from fcn_ray.errors import ConfigError, FcnRayError, ForeignOutputError, StorageError
from fcn_ray.storage import local_path

if TYPE_CHECKING:
    import keras

SUFFIXES = {".keras": "keras", ".onnx": "onnx", "": "savedmodel"}
"""Format by how the name of the output ends."""

BATCHES = ((1, 1, 1), (2, 33, 65), (1, 127, 95))
"""(N, H, W) of the images that are compared: the smallest, just above the network's grid of 32, and just below."""

TOLERANCE = 1e-4
"""Largest allowed |difference| of two logits while no logit is above 10; else 1e-5 of the largest: float32 holds seven
digits, and other kernels add up in another order."""

LOADING = {
    "keras": 'import keras, fcn_ray.models.fcn; keras.models.load_model("{out}")(images)',
    "onnx": 'onnxruntime.InferenceSession("{out}").run(["logits"], {{"image": images}})[0]',
    "savedmodel": 'tf.saved_model.load("{out}").signatures["serving_default"](image=images)["logits"]',
}
"""By format: the Python that gives the logits of images."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how far its logits are from the bundle's."""

    out: str
    format: str
    bytes: int
    digest: str
    """Of the bundle."""
    difference: float
    """Largest |difference| of two logits on the images of BATCHES."""
    limit: float
    """What it may be; see TOLERANCE."""

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        sizes = ", ".join(f"{height}x{width}" for _, height, width in BATCHES)
        yield f"{self.format}: {self.out}, {self.bytes / 1e6:.1f} MB, from the bundle with digest {self.digest[:12]}"
        yield (
            f"checked in a fresh process on images of {sizes}: logits differ by {self.difference:.1e} at most "
            f"(limit {self.limit:.1e})"
        )
        yield "takes RGB float32 (N, H, W, 3) of 0..255, gives logits float32 (N, H, W, classes):"
        yield f"    {LOADING[self.format].format(out=self.out)}"


def export(bundle: str, out: str, *, format: str | None = None) -> ExportReport:
    """Write the network of the bundle folder `bundle` to `out`, which then gives the same logits, or is not there.

    `format` is keras, onnx or savedmodel; by default the one that `out` ends like (SUFFIXES). Raises ConfigError for a
    name or a format that does not do, or when the packages of the extra "onnx" are missing; ForeignOutputError when
    something is at `out`; BundleError; StorageError; and FcnRayError when the logits of the exported network differ.
    """
    path = local_path(out)
    kind = _choose_format(path.name, format)
    if path.exists():
        raise _taken(out)
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    loaded = load_bundle(bundle)
    _check_possible(kind, loaded)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=path.parent) as work:
            return _write_and_check(loaded, kind, out, Path(work))
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}") from error


def _choose_format(name: str, format: str | None) -> str:
    if format is not None and format not in LOADING:
        raise ConfigError(f"format {format!r}: expected one of {', '.join(LOADING)}")
    if format == "keras" and not name.endswith(".keras"):
        raise ConfigError(f"{name}: Keras loads only files that end in .keras; choose another name")
    if format is not None:
        return format
    suffix = Path(name).suffix
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"{name}: no format has the suffix {suffix}; expected .keras, .onnx, or none for a SavedModel folder "
            "(--format savedmodel takes any name)"
        )
    return SUFFIXES[suffix]


def _check_possible(kind: str, bundle: Bundle) -> None:
    """Raise ConfigError for what would only fail at the end."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"export needs KERAS_BACKEND=tensorflow, found {keras.backend.backend()}: set or unset it")
    if kind != "onnx":
        return
    if missing := [name for name in ("tf2onnx", "onnx", "onnxruntime") if find_spec(name) is None]:
        raise ConfigError(f'ONNX needs {", ".join(missing)}, not installed here: pip install "fcn_ray[onnx]"')


def _taken(out: str) -> ForeignOutputError:
    return ForeignOutputError(f"{out} is there already, and an export overwrites nothing: choose another name")


def _write_and_check(bundle: Bundle, kind: str, out: str, work: Path) -> ExportReport:
    """Write below `work`, compare, and only then give it its name."""
    from fcn_ray.inference.export_formats import WRITERS
    from fcn_ray.models.fcn import take_raw_images

    network = bundle.build()
    images = _draw_images()
    expected = _apply(network, bundle, images)
    written = work / "network" / local_path(out).name
    written.parent.mkdir()
    WRITERS[kind](take_raw_images(network, bundle.preprocessing), written, _describe(bundle))
    found = _apply_elsewhere(kind, written, images, work, out)
    difference, limit = compare_logits(found, expected, out)
    size = sum(file.stat().st_size for file in [written, *written.rglob("*")] if file.is_file())
    _put(written, out)
    return ExportReport(str(local_path(out)), kind, size, bundle.digest, difference, limit)


def _describe(bundle: Bundle) -> dict[str, Any]:
    """What a program needs to know beside the network."""
    return {
        "names": bundle.labels.names,
        "palette": bundle.labels.palette,
        "ignore_id": bundle.labels.ignore_id,
        "input": "image: RGB float32 (N, H, W, 3) of 0..255",
        "output": "logits: float32 (N, H, W, classes); the class of a pixel is the index of its largest",
        "digest": bundle.digest,
    }


def _draw_images() -> list[np.ndarray]:
    """Noise, (N, H, W, 3) float32 of 0..255, in the sizes of BATCHES."""
    rng = np.random.default_rng(32)
    return [rng.integers(0, 256, (*batch, 3)).astype(np.float32) for batch in BATCHES]


def _apply(network: keras.Model, bundle: Bundle, images: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of the bundle's own network, on the CPU: a GPU may round its products to ten bits."""
    import keras

    from fcn_ray.models.preprocessing import normalise

    with keras.device("cpu:0"):
        return [np.asarray(network(normalise(batch, bundle.preprocessing), training=False)) for batch in images]


def _apply_elsewhere(kind: str, written: Path, images: list[np.ndarray], work: Path, out: str) -> list[np.ndarray]:
    """Logits of the exported network in a process that knows nothing of this one, on the CPU."""
    sent, received = work / "images.npz", work / "logits.npz"
    np.savez(sent, *images)
    here = Path(__file__).resolve()
    paths = os.pathsep.join(filter(None, (str(here.parents[2]), os.environ.get("PYTHONPATH"))))
    settings = {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow", "PYTHONPATH": paths}
    # -P: a script's folder would otherwise come before the packages, with our module names in it.
    command = [sys.executable, "-P", *map(str, (here.with_name("export_check.py"), kind, written, sent, received))]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise FcnRayError(f"{out} is not written: a fresh process could not use the {kind} network: {reason}")
    with np.load(received) as logits:
        return [logits[name] for name in logits.files]


def compare_logits(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], out: str) -> tuple[float, float]:
    """(largest difference, what it may be) of lists of float32 arrays; see TOLERANCE.

    Raises FcnRayError, which names `out`, when a shape, a type or a logit is another.
    """
    kinds = [[(str(logits.dtype), logits.shape) for logits in side] for side in (found, expected)]
    if kinds[0] != kinds[1]:
        raise FcnRayError(f"{out} is not written: its logits are {kinds[0]}, the bundle's {kinds[1]}; please report it")
    difference = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    largest = max(float(np.abs(logits).max()) for logits in expected)
    limit = TOLERANCE * max(1.0, largest / 10)
    if not difference <= limit:  # nor when it is not a number
        raise FcnRayError(
            f"{out} is not written: its logits differ from the bundle's by {difference:.2e}, the limit is {limit:.2e} "
            f"for logits up to {largest:.3g}; please report it"
        )
    return difference, limit


def _put(written: Path, out: str) -> None:
    """Give what was written its name, unless someone else took it meanwhile."""
    path = local_path(out)
    try:
        if written.is_dir():
            os.rename(written, path)  # replaces nothing but an empty folder
        else:
            os.link(written, path)
    except OSError:
        if path.exists():
            raise _taken(out) from None
        raise
