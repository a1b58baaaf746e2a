"""Rows 1 to 3, 24 and 29 of the catalogue: what is not there, no image, or an image of a format that is not decoded."""

from __future__ import annotations

import base64
import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from tests.images.case import Case, noise, written

PICTURE = noise(29, 24, 17, 3)
HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


def cases() -> Iterator[Case]:
    """All of them."""
    yield Case(1, "null", None, "null")
    yield Case(1, "zero bytes", b"", "empty")
    for name, data in _no_images().items():
        yield Case(2, name, data, "not_image")
    for name, data in _postscript().items():
        yield Case(3, name, data, "format_denied", suffix=".jpg")
    for name, data in _other_photographs().items():
        yield Case(24, name, data, "format_denied")
    for name, data in _other_formats().items():
        yield Case(29, name, data, "format_denied")
    for name, data in _formats_without_a_mark().items():
        yield Case(29, name, data, "not_image")


def _no_images() -> dict[str, bytes]:
    png = written(PICTURE, "PNG")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("picture.png", png)
    return {
        "html": HTML,
        "html after blank lines": b"\n\n" + HTML,
        "html in UTF-16": HTML.decode().encode("utf-16"),
        "json": b'{"error": {"code": 403, "message": "AccessDenied"}}',
        "xml of a store": b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code></Error>',
        "svg": SVG,
        "svg with a declaration": b'<?xml version="1.0"?>' + SVG,
        "svg with a byte order mark": b"\xef\xbb\xbf" + SVG,
        "svg, packed": gzip.compress(SVG, mtime=0),
        "csv": b"name,label\npicture-1,3\n",
        "text that begins like a BMP": b"BMW is a maker of cars",
        "text that begins like a GIF": b"GIF8 is how GIFs begin",
        "name of a file": b"/data/photos/0001.jpg",
        "base64": base64.b64encode(png),
        "data URL": b"data:image/png;base64," + base64.b64encode(png),
        "PNG sent as text": png.replace(b"\r\n", b"\n"),
        "JPEG without its first byte": written(PICTURE, "JPEG")[1:],
        "JPEG after a blank line": b"\n" + written(PICTURE, "JPEG"),
        "first two bytes of a JPEG": b"\xff\xd8",
        "first four bytes of a WebP": b"RIFF",
        "first seven bytes of a PNG": png[:7],
        "zip with a picture": archive.getvalue(),
        "pickle": pickle.dumps(PICTURE),
        "npy": b"\x93NUMPY\x01\x00" + bytes(100),
        "parquet": b"PAR1" + bytes(100) + b"PAR1",
        "wav": b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(92),
        "mp4": struct.pack(">I", 24) + b"ftypisom" + bytes(100),
        "one byte": b"\x00",
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        **{f"random, {size} bytes": np.random.default_rng(size).bytes(size) for size in (3, 100, 10_000, 300_000)},
    }


def _postscript() -> dict[str, bytes]:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    return {
        "eps": eps + b"0 0 9 9 rectfill\nshowpage\n%%EOF\n",
        "eps that runs a command": eps + b"(%pipe%touch /tmp/owned) (w) file closefile\nshowpage\n%%EOF\n",
        "eps with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(eps), 0, 0, 0, 0) + b"\xff\xff" + eps,
        "eps of Pillow": written(PICTURE, "EPS"),
        "postscript": b"%!PS\n/Times findfont 12 scalefont setfont (hello) show showpage\n",
    }


def _other_photographs() -> dict[str, bytes]:
    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    rest = box(b"meta", bytes(60)) + box(b"mdat", noise(24, 90).tobytes())
    return {
        "AVIF": box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf") + rest,
        "AVIF, a sequence": box(b"ftyp", b"avis" + bytes(4) + b"avisavif") + rest,
        "HEIC": box(b"ftyp", b"heic" + bytes(4) + b"mif1heic") + rest,
        "HEIC of 10 bits": box(b"ftyp", b"heix" + bytes(4) + b"mif1heix") + rest,
        "HEIC, a sequence": box(b"ftyp", b"hevc" + bytes(4) + b"msf1hevc") + rest,
        "HEIF": box(b"ftyp", b"mif1" + bytes(4) + b"mif1heic") + rest,
        "HEIF, a sequence": box(b"ftyp", b"msf1" + bytes(4) + b"msf1hevc") + rest,
        "JPEG 2000": box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 " + bytes(4) + b"jp2 ") + rest,
        "JPEG 2000, bare": b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 47, 0, 17, 24, 0, 0) + bytes(90),
        "JPEG XL": box(b"JXL ", b"\r\n\x87\n") + rest,
    }


def _other_formats() -> dict[str, bytes]:
    return {
        **{name: written(PICTURE, name) for name in ("ICO", "ICNS", "DDS", "PDF", "PPM")},
        "PPM in grey": written(PICTURE[..., 0], "PPM"),
        "PPM of one bit": written(PICTURE[..., 0] > 99, "PPM"),
        "PSD": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 24, 17, 8, 3) + bytes(90),
        "QOI": b"qoif" + struct.pack(">IIBB", 17, 24, 3, 0) + bytes(90),
        "FITS": b"SIMPLE  =                    T".ljust(2880),
        "OpenEXR": b"\x76\x2f\x31\x01\x02\x00\x00\x00" + bytes(90),
        "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 24 +X 17\n" + bytes(90),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(90),
    }


def _formats_without_a_mark() -> dict[str, bytes]:
    """Formats that begin like anything: Pillow would try, and nobody here does."""
    rgb = {name: written(PICTURE, name) for name in ("TGA", "PCX", "SGI", "IM", "DIB")}
    bits = {name: written(PICTURE[..., 0] > 99, name) for name in ("XBM", "MSP")}
    return rgb | bits | {"SPIDER": written(PICTURE[..., 0].astype(np.float32), "SPIDER")}
