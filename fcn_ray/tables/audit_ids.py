"""The audit of ids that users name: which values of their column belong to more than one image."""

from __future__ import annotations

from array import array
from hashlib import blake2b

import numpy as np


class NamedIds:
    """Digests of the id of every row and of its image, 16 bytes a row: one time in forty, two of a billion are equal by
    chance."""

    def __init__(self) -> None:
        self._pairs = array("Q")

    def add(self, image_id: str, path: str, row: int) -> None:
        """One row; rows of one image, of several versions or tries, are one."""
        self._pairs.extend((_digest(image_id), _digest(f"{path}#{row}")))

    def count_shared(self) -> int:
        """How many ids more than one image has."""
        pairs = np.unique(np.frombuffer(self._pairs, [("id", "u8"), ("image", "u8")]))
        _, images = np.unique(pairs["id"], return_counts=True)
        return int((images > 1).sum())


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
