"""The folder in which an import works: hidden beside the result, and gone with the import, however that ended."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".tmp-import-"

YOUNG_SECONDS = 60.0
"""A folder that was changed so lately may be one that its import has not locked yet."""


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, locked as long as this process lives; what killed imports left there goes first.

    Where the file system has no locks, nothing is known of the others, and what they left stays.
    """
    for other in folder.glob(f"{PREFIX}*"):
        if _is_left(other):
            shutil.rmtree(other, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as work:
        file = os.open(work, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(work)
        finally:
            os.close(file)


def _is_left(folder: Path) -> bool:
    """Whether the import that made the folder has ended."""
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(file).st_mtime > YOUNG_SECONDS
    except OSError:
        return False
    finally:
        os.close(file)
