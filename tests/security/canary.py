"""What strangers' files would do if they could: touch a file that must never be there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any


class Canary:
    """A Python object whose pickle makes the file `path` when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled(path: Path) -> bytes:
    """A pickle that makes the folder `path`."""
    return pickle.dumps(Canary(path))
