"""A seal: the digest of a Parquet file in its own metadata, so that a changed bit shows before any manifest has it.

Page checksums cover the data, but not the footer, the indexes and the headers of the pages.
"""

from __future__ import annotations

import hashlib
import io

import pyarrow.parquet as pq

KEY = b"fcn_ray.seal"
BLANK = "0" * 64
"""What stands in the place of the digest while it is taken; a writer adds it as the value of KEY."""


def seal(file: io.BytesIO) -> bytes:
    """The content of a Parquet file, with its digest in the place of BLANK."""
    with file.getbuffer() as content:
        at = _find(content, BLANK.encode())
        content[at : at + len(BLANK)] = hashlib.sha256(content).hexdigest().encode()
    return file.getvalue()


def is_broken(data: bytes) -> bool:
    """True when a Parquet file is not what was sealed; those from before there were seals have none to break.

    Raises what pyarrow raises when it is no Parquet file.
    """
    found = (pq.read_metadata(io.BytesIO(data)).metadata or {}).get(KEY)
    if found is None:
        return False
    at = _find(memoryview(data), found)
    digest = hashlib.sha256(memoryview(data)[:at])
    digest.update(BLANK.encode())
    digest.update(memoryview(data)[at + len(found) :])
    return bool(digest.hexdigest().encode() != found)


def _find(content: memoryview, value: bytes) -> int:
    """Where the metadata have a value: in the footer, whose length is in the last 8 bytes."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return start + bytes(content[start:]).rindex(value)
