"""Read weight files under watch: python -m tests.security.watched FOLDER FILE... prints what came of each as JSON.

A process of its own, since Python's audit hooks stay for good, and since the peak of its memory is measured.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "ctypes.dlopen",
)
FORBIDDEN += (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.sendto",
    "socket.bind",
    "os.mkdir",
    "os.remove",
    "os.rename",
)


class Watch:
    """Notes every forbidden thing that Python is asked to do, and every file that is opened to be written."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wax+"))
        if event in FORBIDDEN or writing:
            self.seen.append(f"{event} {arguments[:2]!r}"[:200])


def attempt(read: Callable[[], object]) -> str:
    """ "Type: message" of what is raised, or "read"."""
    try:
        read()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def main() -> None:
    from fcn_ray.models.weight_files import check_weights
    from fcn_ray.models.weight_readers import read_arrays

    folder, *names = sys.argv[1:]
    for good in sorted(Path(folder).glob("good.*")):  # imports what is only imported when it is needed
        read_arrays(str(good))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = Watch()
    found = {name: attempt(lambda path=f"{folder}/{name}": check_weights(path, "vgg16")) for name in names}
    seen, after = list(watch.seen), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attempt(lambda: np.load(f"{folder}/objects.npz", allow_pickle=True)["block1_conv1/kernel"])  # is anybody watching?
    print(json.dumps({"found": found, "seen": seen, "control": watch.seen, "grown": 1024 * (after - before)}))


if __name__ == "__main__":
    main()
