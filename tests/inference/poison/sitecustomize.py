"""Bugs for Pillow, in every Python process that has this folder on its path: a picture that says so sets one off.

`poison:kill` is a segmentation fault, `poison:hang` a loop in C that holds the interpreter, `poison:fill` takes memory
for ever; they stand anywhere in the file. POISON_LOG in the environment is a file that gets a line for each.
"""

import ctypes
import io
import os
import re
from typing import Any

import PIL.Image

_open = PIL.Image.open


def _log(content: bytes) -> None:
    found = re.search(b"poison:([a-z]+)", content)
    if found and (path := os.environ.get("POISON_LOG")):
        with open(path, "ab") as log:
            log.write(found[1] + b"\n")


def _poisoned_open(file: Any, *arguments: Any, **named: Any) -> Any:
    content = file.getvalue() if isinstance(file, io.BytesIO) else b""
    _log(content)
    if b"poison:kill" in content:
        ctypes.string_at(0)
    if b"poison:hang" in content:
        ctypes.PyDLL(None).pause()
    if b"poison:fill" in content:
        eaten = []
        while True:
            eaten.append(bytearray(64 << 20))
    return _open(file, *arguments, **named)


PIL.Image.open = _poisoned_open
