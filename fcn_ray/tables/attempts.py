"""Marks that outlive a process: which image of a chunk was being predicted when an actor died.

`attempts/<chunk_id>.json` is written for chunks that have taken an actor down, before each of their images. It informs;
no promise rests on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Any

from fcn_ray import storage
from fcn_ray.errors import OutOfReachError, StorageError

logger = logging.getLogger(__name__)


class Attempts:
    """What is known of a chunk's earlier attempts, and the marks of this one."""

    def __init__(self, run_uri: str, chunk_id: str, job: str, node: str, alive: Collection[str]) -> None:
        """`job` and `node` are Ray's ids of the job and node that make this attempt, `alive` those of all nodes.

        The image that was marked last killed the process, if the attempt was this job's and its node is still there:
        else it was the job that ended, or the node.
        """
        self._uri = storage.join(run_uri, "attempts", f"{chunk_id}.json")
        self._here = {"job": job, "node": node}
        found = _read(self._uri)
        self.crashed: set[int] = {row for row in found.get("crashed", []) if isinstance(row, int)}
        """Rows of the chunk that killed an actor."""
        row = found.get("row")
        if isinstance(row, int) and found.get("job") == job and found.get("node") in alive:
            self.crashed.add(row)

    def begin(self, row: int) -> None:
        """The image in this row of the chunk is next."""
        self._write(row)

    def end(self) -> None:
        """All images are through."""
        self._write(None)

    def _write(self, row: int | None) -> None:
        mark = {**self._here, "row": row, "crashed": sorted(self.crashed)}
        try:
            storage.replace(self._uri, (json.dumps(mark) + "\n").encode())
        except OutOfReachError:
            raise
        except StorageError as error:
            logger.warning("no mark of this attempt: %s", error)


def _read(uri: str) -> dict[str, Any]:
    try:
        found = json.loads(storage.read_bytes(uri))
    except OutOfReachError:
        raise
    except (StorageError, ValueError):  # there is none, or none that says anything
        return {}
    return found if isinstance(found, dict) else {}
