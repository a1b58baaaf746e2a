"""Images in tar archives, as WebDataset packs them: found by their headers and read by offset; nothing is extracted.

A member with the name of an image is a row, in the order of the archive; links, sparse files, hidden ones and all
others are none. (A row takes 512 bytes at least, so that no archive can promise rows without end.) Read are ustar, GNU
and pax archives that are whole: one without its end mark, or with anything behind it, is damaged, as is one whose
headers cannot be true. So the rows of an archive are always the same.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from fcn_ray.storage.uris import is_hidden
from fcn_ray.tables.sources import IMAGE_SUFFIXES

BLOCK = 512
"""Bytes of a header; what a member holds is filled up to a multiple of them."""
_HEADER = struct.Struct("100s24x12s12x8s1s100x6s82x155s12x")
"""Name, size, checksum, kind, magic and prefix of a header."""

_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes: what their size says is not in the archive."""

_PAX_OF_ALL, _LONG_NAME, _LONG_LINK, _SPARSE = b"g", b"L", b"K", b"S"
_EXTENDED = (b"x", b"X", _PAX_OF_ALL, _LONG_NAME, _LONG_LINK)
"""Headers that tell of the member after them."""

_RECORD = re.compile(rb"(\d{1,7}) ([^=\0\n]+)=")

_MAX_EXTENDED = 1 << 20
"""Most bytes of an extended header: names are short."""

_MAX_TRAILER = 1 << 20
"""How far behind the end mark nothing but zeros may be."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image in an archive: its name, where its headers and its content begin, and how many bytes it has."""

    name: str
    offset: int
    data_offset: int
    size: int


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes


def walk_images(file: BinaryIO, offset: int = 0) -> Iterator[Member]:
    """The images of an archive from the one whose headers begin at `offset` on, one read of 512 bytes for each member.

    Raises ValueError, which says where, as soon as the archive is seen to be cut off or damaged.
    """
    end, at, extended = file.seek(0, io.SEEK_END), offset, dict[str, Any]()
    while header := _read_header(file, at, end):
        data_at = at + BLOCK
        if header.kind in _EXTENDED:
            extended |= _read_extended(header, _read(file, data_at, _checked(header.size), end))
            at = data_at + _padded(header.size)
            continue
        name, size = extended.get("path", header.name), extended.get("size", header.size)
        if header.kind == _SPARSE:
            data_at = _skip_sparse(file, at, end)
        length = 0 if header.kind in _WITHOUT_DATA else size
        if data_at + length > end:
            raise ValueError(f"its member at byte {at} has {length} bytes, which are more than there are")
        text = name.decode(errors="replace")
        if header.kind in _REGULAR and "sparse" not in extended and _is_image(text):
            yield Member(text, offset, data_at, size)
        offset = at = data_at + _padded(length)
        extended = {}
    if extended:
        raise ValueError(f"it ends in the midst of a member at byte {at}")


def read_member(file: BinaryIO, member: Member) -> bytes:
    """Content of an image. Raises ValueError when there is less."""
    file.seek(member.data_offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise ValueError(f"its member at byte {member.offset} is cut off")
    return data


def key_of(name: str) -> str:
    """WebDataset's key of a member: its name up to the first dot in its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _is_image(name: str) -> bool:
    while name.startswith("./"):
        name = name[2:]
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def _read_header(file: BinaryIO, at: int, end: int) -> _Header | None:
    """The header at a place; None where the archive ends."""
    block = _read(file, at, BLOCK, end)
    if not any(block):
        if any(_read(file, at, min(end - at, _MAX_TRAILER), end)):
            raise ValueError(f"something follows its end mark at byte {at}: archives that were joined?")
        return None
    name, size, checksum, kind, magic, prefix = _HEADER.unpack(block)
    if sum(block) - sum(checksum) + 8 * ord(" ") != _number(checksum):
        raise ValueError(f"what is at byte {at} is no header of a member")
    name, prefix = name.partition(b"\0")[0], prefix.partition(b"\0")[0]
    if magic == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return _Header(name, _number(size), kind)


def _read(file: BinaryIO, at: int, count: int, end: int) -> bytes:
    if at + count > end:
        raise ValueError(f"it is cut off: it ends at byte {end} without an end mark")
    file.seek(at)
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"it is cut off at byte {at + len(data)}")
    return data


def _number(field: bytes) -> int:
    """Octal digits, or, for what they cannot say, binary after a first byte of 128."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-7]*", text):
        raise ValueError(f"a header has {field!r} for a number")
    return int(text or b"0", 8)


def _checked(size: int) -> int:
    if size > _MAX_EXTENDED:
        raise ValueError(f"an extended header has {size} bytes, more than {_MAX_EXTENDED}")
    return size


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read_extended(header: _Header, data: bytes) -> dict[str, Any]:
    """What an extended header says of the next member: `path` (bytes), `size`, and `sparse`."""
    if header.kind == _LONG_NAME:
        return {"path": data.partition(b"\0")[0]}
    if header.kind == _LONG_LINK:
        return {}
    found: dict[str, Any] = {}
    for key, value in _pax_records(data):
        if key == b"path":
            found["path"] = value
        elif key == b"size":
            if not re.fullmatch(rb"\d{1,19}", value):
                raise ValueError(f"an extended header has {value[:30]!r} for a size")
            found["size"] = int(value)
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = True
    if found and header.kind == _PAX_OF_ALL:
        raise ValueError(f"a header gives all members the same {' and '.join(found)}")
    return found


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each record `LENGTH KEY=VALUE\\n`; the length counts all of it."""
    at = 0
    while at < len(data) and data[at]:
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            raise ValueError("an extended header cannot be read")
        yield match[2], data[match.end() : end - 1]
        at = end


def _skip_sparse(file: BinaryIO, at: int, end: int) -> int:
    """Where the data of a sparse file of the old GNU kind begins: behind the blocks that tell where its holes are."""
    more, at = _read(file, at, BLOCK, end)[482], at + BLOCK
    while more:
        more, at = _read(file, at, BLOCK, end)[504], at + BLOCK
    return at
