"""Training state on storage: written by rank 0, its digest file last; read back as the newest that verifies.

A checkpoint is a folder `checkpoints/<step:08>-<token>/` with `state.safetensors` (every weight and optimizer variable)
and `checkpoint.json` (epoch, step, and size and sha256 of the state), and `score.json` once the end of an epoch is
validated: the state is large, and is not written again for that. (Older runs have the score in `checkpoint.json`.) A
folder without that last file, or with
other bytes than it says, was torn by a crash or damaged: it is passed over, and the one before it is used. (What has no
index is deleted when a driver starts.)
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy

from fcn_ray import storage
from fcn_ray.errors import DivergedError, OutOfReachError

logger = logging.getLogger(__name__)

FORMAT = "fcn_ray checkpoint 2"
STATE = "state.safetensors"
INDEX = "checkpoint.json"
SCORE = "score.json"

MODEL, OPTIMIZER = "model/", "optimizer/"
"""Prefixes of the names of arrays."""

Arrays = dict[str, np.ndarray]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `checkpoint.json` says, and where it lies."""

    folder: str
    epoch: int
    """Epochs that are complete."""
    step: int
    """Optimizer steps that are complete."""
    score: float | None
    """Mean IoU on the validation set; None without one."""
    settings: str
    """Digest of the settings that the weights depend on; only a run with equal ones may go on from here."""
    metrics: dict[str, Any]
    """At the end of an epoch its record: "val" once it is scored, "val_data" the digest of what it was scored on. In
    the middle of one "losses": the sum of the losses of its steps so far, and their number."""
    remaining: tuple[tuple[int, int], ...] | None = None
    """Rows of the current epoch's order that no step has used (training/order.py); None at the border of an epoch."""
    rate_factor: float = 1.0
    """On the learning rate: halved each time that the training went back after it had diverged."""

    @property
    def name(self) -> str:
        """That of its folder, wherever the run has been moved."""
        return self.folder.rpartition("/")[2]


def save_checkpoint(run: str, checkpoint: Checkpoint, arrays: Arrays) -> Checkpoint:
    """Write a checkpoint below the training folder `run`; `checkpoint.folder` is chosen here.

    Raises DivergedError when an array is not finite: such a state is never written.
    """
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise DivergedError(f"{name} is not finite after step {checkpoint.step}: lower optimizer.learning_rate")
    name = f"{checkpoint.step:08}-{secrets.token_hex(4)}"
    folder = storage.join(run, "checkpoints", name)
    data = safetensors.numpy.save(arrays)
    storage.put_if_absent(storage.join(folder, STATE), data)
    index = asdict(checkpoint) | {"format": FORMAT, "size": len(data), "sha256": storage.digest(data)}
    del index["folder"]
    storage.put_if_absent(storage.join(folder, INDEX), json.dumps(index, indent=1).encode())
    return Checkpoint(**{**asdict(checkpoint), "folder": folder})


def save_score(folder: str, score: float | None, metrics: dict[str, Any]) -> None:
    """Give the checkpoint in `folder` what its validation came to."""
    storage.replace(storage.join(folder, SCORE), json.dumps({"score": score, "metrics": metrics}).encode())


def list_checkpoints(run: str) -> list[Checkpoint]:
    """Checkpoints whose index can be read, oldest first. Their state is not checked yet."""
    found = []
    files = {entry.path for entry in storage.list_files(storage.join(run, "checkpoints"))}
    for path in files:
        if not path.endswith("/" + INDEX):
            continue
        name = path.removesuffix("/" + INDEX)
        folder = storage.join(run, "checkpoints", name)
        try:
            index = json.loads(storage.read_bytes(storage.join(folder, INDEX)))
            known = {key: index[key] for key in ("epoch", "step", "score", "settings", "metrics", "rate_factor")}
            ranges = index["remaining"]
            known["remaining"] = None if ranges is None else tuple((int(a), int(b)) for a, b in ranges)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged and passed over: %s", folder, error)
            continue
        found.append(Checkpoint(folder=folder, **known | (_read_score(folder) if f"{name}/{SCORE}" in files else {})))
    return sorted(found, key=lambda c: (c.step, c.folder))


def _read_score(folder: str) -> dict[str, Any]:
    """Score and metrics of a validated checkpoint; none, with a warning, when they are damaged."""
    try:
        found = json.loads(storage.read_bytes(storage.join(folder, SCORE)))
        return {"score": found["score"], "metrics": found["metrics"]}
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s in %s is damaged: the checkpoint counts as not validated: %s", SCORE, folder, error)
        return {}


def find_newest(run: str, distrusted: Collection[str] = ()) -> Checkpoint | None:
    """The newest checkpoint that verifies, but none of the names `distrusted`; None without one."""
    for checkpoint in reversed(list_checkpoints(run)):
        if checkpoint.name not in distrusted and is_whole(checkpoint):
            return checkpoint
    return None


def is_whole(checkpoint: Checkpoint) -> bool:
    """Whether the bytes of a checkpoint's state are those that were written; read piece by piece, not into memory."""
    return _read_state(checkpoint, storage.digest_file, str) is not None


def load_arrays(checkpoint: Checkpoint) -> Arrays | None:
    """The arrays of a checkpoint; None, with a warning, when its bytes are not those that were written."""
    data = _read_state(checkpoint, storage.read_bytes, storage.digest)
    return None if data is None else safetensors.numpy.load(data)


def _read_state(checkpoint: Checkpoint, read: Callable[[str], T], digest: Callable[[T], str]) -> T | None:
    """What `read` makes of the state's file; None, with a warning, when its `digest` is not that of the index."""
    try:
        index = json.loads(storage.read_bytes(storage.join(checkpoint.folder, INDEX)))
        state = read(storage.join(checkpoint.folder, STATE))
    except OutOfReachError:  # no fault of the checkpoint: to pass over it would lose its steps
        raise
    except Exception as error:  # whatever is wrong with a damaged checkpoint, an older one may serve
        logger.warning("%s cannot be read and is passed over: %s", checkpoint.folder, error)
        return None
    if index.get("format") != FORMAT or digest(state) != index.get("sha256"):
        logger.warning("%s: %s has changed since it was written and is passed over", checkpoint.folder, STATE)
        return None
    return state


def load_best(run: str) -> tuple[Checkpoint, Arrays] | None:
    """The checkpoint with the highest score that verifies, the earlier one of equals; without scores the newest."""
    for checkpoint in _ranked(list_checkpoints(run)):
        arrays = load_arrays(checkpoint)
        if arrays is not None:
            return checkpoint, arrays
    return None


def _ranked(found: list[Checkpoint]) -> list[Checkpoint]:
    scored = [c for c in found if c.score is not None]
    if scored:
        return sorted(scored, key=lambda c: (-(c.score or 0.0), c.step))
    return found[::-1]


def remove_old(run: str, keep: int, written: str | None = None) -> None:
    """Delete all checkpoints but the newest `keep`, the best, and the folder `written`.

    What was just written may be of an earlier step than damaged ones, which a resumed run has passed over.
    """
    found = list_checkpoints(run)
    for checkpoint in found[:-keep]:
        if checkpoint != _ranked(found)[0] and checkpoint.folder != written:
            storage.remove_folder(checkpoint.folder)


def remove_distrusted(run: str, distrusted: Collection[str]) -> None:
    """Delete the checkpoints of these names, but not the best: they would be counted among the newest."""
    found = list_checkpoints(run)
    for checkpoint in found:
        if checkpoint.name in distrusted and (checkpoint.score is None or checkpoint != _ranked(found)[0]):
            storage.remove_folder(checkpoint.folder)


def remove_torn(run: str) -> None:
    """Delete what a crash left of checkpoints: folders whose index is not there, or is no JSON. No worker may run."""
    for name in storage.list_folders(storage.join(run, "checkpoints")):
        folder = storage.join(run, "checkpoints", name)
        index = storage.join(folder, INDEX)
        try:
            json.loads(storage.read_bytes(index) if storage.is_file(index) else b"")
        except ValueError:
            logger.warning("%s is not whole and is deleted", folder)
            storage.remove_folder(folder)
