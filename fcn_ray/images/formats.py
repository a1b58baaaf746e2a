"""What encoded bytes are, judged by their content alone, and whether they are whole. No decoder runs here."""

from __future__ import annotations

import re
import struct
import zlib

from fcn_ray.images import tiff
from fcn_ray.images.headers import jpeg_segments

ACCEPTED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are decoded, by Pillow's names. MPO (two-picture JPEG of cameras and phones) comes in as JPEG.

Pillow has some forty parsers, one of which starts Ghostscript: only these few ever see a stranger's bytes.
"""

_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("WEBP", 8, b"WEBP"),
    ("GIF", 0, b"GIF87a"),
    ("GIF", 0, b"GIF89a"),
    ("TIFF", 0, b"II*\x00"),
    ("TIFF", 0, b"MM\x00*"),
    ("TIFF", 0, b"II+\x00"),
    ("TIFF", 0, b"MM\x00+"),
    ("BMP", 6, b"\x00\x00\x00\x00"),  # the reserved field; "BM" alone would take every text that begins so
    ("EPS", 0, b"%!PS"),
    ("EPS", 0, b"\xc5\xd0\xd3\xc6"),
    ("PDF", 0, b"%PDF"),
    ("PSD", 0, b"8BPS"),
    ("AVIF", 4, b"ftypavif"),
    ("AVIF", 4, b"ftypavis"),
    ("HEIC", 4, b"ftyphei"),
    ("HEIC", 4, b"ftyphev"),
    ("HEIC", 4, b"ftypmif1"),
    ("HEIC", 4, b"ftypmsf1"),
    ("JPEG 2000", 0, b"\x00\x00\x00\x0cjP  "),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 0, b"\x00\x00\x00\x0cJXL "),
    ("ICO", 0, b"\x00\x00\x01\x00"),
    ("ICNS", 0, b"icns"),
    ("DDS", 0, b"DDS "),
    ("QOI", 0, b"qoif"),
    ("FITS", 0, b"SIMPLE  ="),
    ("OpenEXR", 0, b"\x76\x2f\x31\x01"),
    ("Radiance HDR", 0, b"#?RADIANCE"),
    ("WMF", 0, b"\xd7\xcd\xc6\x9a"),
    ("Netpbm", 0, b"P4\n"),
    ("Netpbm", 0, b"P5\n"),
    ("Netpbm", 0, b"P6\n"),
)
"""(format, offset, bytes found there)."""

_PREFIXES = {"WEBP": b"RIFF", "BMP": b"BM"}
"""What the file also begins with, for signatures that lie further in."""


def sniff(data: bytes) -> str | None:
    """Name of the image format of `data`, accepted or not; None when it is no image that we know."""
    for name, offset, signature in _SIGNATURES:
        if data.startswith(signature, offset) and data.startswith(_PREFIXES.get(name, b"")):
            return name
    return None


_STRANGERS: tuple[tuple[str, str], ...] = (
    ("HTML", r"(?is)\s*<(!doctype html|html)"),
    ("SVG", r"(?is)\s*(<\?xml.*)?<svg"),
    ("XML", r"\s*<\?xml"),
    ("JSON", r"\s*[{\[]"),
    ("a ZIP archive", r"PK\x03\x04"),
    ("a gzip archive", r"\x1f\x8b"),
    ("an HDF5 file", r"\x89HDF"),
    ("a Parquet file", r"PAR1"),
    ("a Python pickle", r"\x80[\x02-\x05]"),
    ("text", r"[\t\n\r -~]+$"),
)
"""What downloads and mix-ups leave in an image's place, by how it begins."""


def describe_stranger(data: bytes) -> str:
    """What bytes that are no image seem to be, for a message that must not quote them: they may be anybody's file."""
    head = data[:256].decode("latin-1")
    return next((name for name, pattern in _STRANGERS if re.match(pattern, head)), "unknown bytes")


def damage(data: bytes, name: str) -> tuple[str, str] | None:
    """(status, message) when a file of the accepted format `name` is cut or changed in a way that Pillow takes."""
    if name == "PNG":
        return _png_damage(data)
    if name == "TIFF":
        return _tiff_damage(data)
    return _jpeg_damage(data) if name == "JPEG" else None


def _png_damage(data: bytes) -> tuple[str, str] | None:
    """Walks the chunks up to IEND and checks their CRCs.

    Pillow's `load` accepts wrong CRCs and a missing end, and its `verify` accepts an end without CRC; both tell the
    cases apart by the wording of their messages only.
    """
    view, position = memoryview(data), 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return "corrupt", f"PNG chunk {kind!r} at byte {position} does not match its checksum"
        if position == 8 and data[26:29] not in (b"\0\0\0", b"\0\0\1"):
            return "corrupt", f"PNG has no compression, filter and interlacing of {data[26:29]!r}"
        if kind == b"IEND":
            return None
        position = end
    return "truncated", f"PNG ends after {len(data)} bytes, before its IEND chunk"


def _jpeg_damage(data: bytes) -> tuple[str, str] | None:
    """Looks for the end mark behind the first scan: where zeros stand for what was cut off, Pillow decodes them."""
    try:
        *_, (_, scan) = jpeg_segments(data)
    except (struct.error, IndexError):
        if data.endswith(b"\xff\xd9"):
            return None  # whole, but no JPEG: Pillow says why
        return "truncated", f"JPEG ends after {len(data)} bytes, before its first scan"
    if data.rfind(b"\xff\xd9") < scan:
        return "truncated", f"JPEG of {len(data)} bytes has no end mark"
    return None


def _tiff_damage(data: bytes) -> tuple[str, str] | None:
    try:
        lacking = tiff.lacks_parts(data)
    except (struct.error, ValueError):
        return None  # its header cannot be read, which is found out next
    return (
        ("corrupt", f"TIFF of {len(data)} bytes has fewer strips or tiles than its size asks for") if lacking else None
    )


def is_cut(data: bytes, name: str) -> bool:
    """True when `data` of the accepted format `name` is shorter than its own header says, or lacks its end mark.

    Asked only after decoding has failed: writers get these fields wrong in files that decode well.
    """
    try:
        if name == "GIF":
            return not data.rstrip(b"\x00").endswith(b";")
        if name == "WEBP":
            return len(data) < 8 + int(struct.unpack_from("<I", data, 4)[0])
        if name == "BMP":
            return len(data) < int(struct.unpack_from("<I", data, 2)[0])
        return name == "TIFF" and len(data) < tiff.expected_bytes(data)
    except struct.error:
        return True
    except ValueError:
        return False
