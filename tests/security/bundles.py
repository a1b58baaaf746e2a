"""Bundles made by hand, as their authors may make them: model.json vouches for whatever lies beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def _manifest(data: bytes, /, **changes: Any) -> dict[str, Any]:
    """A model.json that vouches for whatever weights lie beside it, as its author may."""
    return {
        "format": "fcn_ray.bundle/1",
        "spec": {"width": 0.05, "fc_channels": 2, "num_classes": 2},
        "labels": {"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "ignore_id": 255},
        "preprocessing": {},
        "weights": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        "versions": {},
        "metadata": {},
    } | changes


def write_bundle(folder: Path, data: bytes, /, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "model.json").write_text(json.dumps(_manifest(data, **changes)))
    return str(folder)
