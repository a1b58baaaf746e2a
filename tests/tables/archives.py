"""Tars for tests, written by the standard library, and by hand where that would not write such a thing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar(members: Iterable[tuple[str, bytes]], kind: str = "gnu") -> bytes:
    """An archive of regular files, in order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[kind]) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path, images: int, kind: str = "gnu") -> Path:
    """A WebDataset shard: `images` images b"tar image 0"..., each with a class and a text beside it."""
    members = []
    for number in range(images):
        key = f"shard/{number:04}"
        members += [(f"{key}.cls", b"7"), (f"{key}.jpg", b"tar image %d" % number), (f"{key}.txt", b"a street")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(members, kind))
    return path


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, changes: dict[int, bytes] | None = None) -> bytes:
    """One header of 512 bytes with a right checksum; `changes` puts bytes at places in it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for place, data in (changes or {}).items():
        block[place : place + len(data)] = data
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)
