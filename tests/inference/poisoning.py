"""Pictures that set off the bugs of tests/inference/poison in a process that has that folder on its path."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

FOLDER = str(Path(__file__).parent / "poison")


def encode_poison(what: str) -> bytes:
    """A PNG that is a `kill`, `hang` or `fill` to the poisoned Pillow, and a picture to any other."""
    text = PngInfo()
    text.add_text("comment", f"poison:{what}")
    file = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(file, "PNG", pnginfo=text)
    return file.getvalue()
