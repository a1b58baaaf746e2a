"""The curve of a training, `metrics.jsonl`: written by a worker before the checkpoint of each epoch's end.

So every epoch that a run can go on from is in it, whatever has become of the driver.
"""

from __future__ import annotations

import json
from typing import Any

from fcn_ray import storage

CURVE = "metrics.jsonl"


def keep_curve(out: str, record: dict[str, Any]) -> None:
    """One line for each epoch; a resumed run goes on with it, from the epoch it does again. Raises StorageError."""
    kept = [line for line in read_curve(out) if line["epoch"] < record["epoch"]]
    text = "".join(f"{json.dumps(line)}\n" for line in [*kept, record])
    storage.replace(storage.join(out, CURVE), text.encode())


def read_curve(out: str) -> list[dict[str, Any]]:
    """The records of kind "epoch" so far, in their order."""
    uri = storage.join(out, CURVE)
    lines = storage.read_bytes(uri).decode().splitlines() if storage.is_file(uri) else []
    return [json.loads(line) for line in lines]
