"""Encoded bytes <-> arrays. Every image that training and inference see was decoded here, by the same rules.

Content decides, never a name. The header is checked before pixels are decoded. ICC profiles are not applied.
What is done with CMYK, 16 bits, palettes... and the flag that tells, is in rules.py.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

# Image.open knows BMP, GIF, JPEG and PNG from the start; to find these two it would load all of Pillow's parsers.
from PIL import TiffImagePlugin as TiffImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from fcn_ray.errors import DataError
from fcn_ray.images.formats import ACCEPTED, damage, describe_stranger, is_cut, sniff
from fcn_ray.images.geometry import Pixels
from fcn_ray.images.headers import Header, read_header
from fcn_ray.images.rules import Decoded as Decoded
from fcn_ray.images.rules import ImageError as ImageError
from fcn_ray.images.rules import apply_rules, raw_mode

LABEL_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
"""Lossless formats; JPEG and WebP blend the ids of neighbours."""

MAX_LABEL_PIXELS = 178_956_970
"""Largest label, or tile of one: as many pixels as Pillow takes by itself."""

_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Pillow stretches 2- and 4-bit grey to 0..255; ids are the value divided by this step. "L;2I", "L;4R"... likewise."""


def decode_image(data: bytes | None, max_pixels: int) -> Decoded:
    """Encoded image -> upright RGB pixels.

    Raises ImageError with the status empty, null, not_image, format_denied, truncated, corrupt, too_big (more than
    `max_pixels`, or than Pillow's own limit, by the header; or no memory for the pixels) or non_finite; nothing else.
    """
    if data is None:
        raise ImageError("null", "the cell holds no bytes")
    name = _accepted_format(data)
    try:
        header = _check(data, name, max_pixels)
        if header.denied:
            raise ImageError("format_denied", header.denied)
        with Image.open(io.BytesIO(data), formats=(name,)) as image:
            _check_size(image.height, image.width, max_pixels)  # a GIF grows with its first frame
            return apply_rules(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error... on damaged images
        raise _explain(error, data, name) from error


def _check(data: bytes, name: str, max_pixels: int) -> Header:
    """What can be known before a decoder runs: the file is whole, has a header, and is not too much."""
    if found := damage(data, name):
        raise ImageError(*found)
    header = read_header(data, name)
    if header is None:
        status = "truncated" if is_cut(data, name) else "corrupt"
        raise ImageError(status, f"{name}, {len(data)} bytes: the header cannot be read")
    _check_size(header.height, header.width, max_pixels)
    return header


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError("too_big", f"{height} x {width} pixels, the limit is {max_pixels}")


def _explain(error: Exception, data: bytes, name: str) -> ImageError:
    """What it means that Pillow raised `error`."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning | MemoryError):
        return ImageError("too_big", str(error) or f"no memory to decode {len(data)} bytes of {name}")
    if is_cut(data, name) or "truncated" in str(error):
        status = "truncated"
    elif "Unsupported" in str(error) or (name == "TIFF" and isinstance(error, UnidentifiedImageError)):
        status = "format_denied"  # nothing is wrong with it: its header was read before
    else:
        status = "corrupt"
    return ImageError(status, f"{name}, {len(data)} bytes: {_brief(error)}")


def decode_label(data: bytes | None, where: str = "label") -> Pixels:
    """Encoded label or mask -> class ids (H, W) uint8, exactly as stored: a palette's indices, never its colours.

    EXIF orientation is not applied. Raises DataError, which names the label as `where`, for what cannot be ids.
    """
    try:
        name = _accepted_format(data or b"")
        if name not in LABEL_FORMATS:
            raise DataError(f"{where}: {name} is lossy and blends class ids; store labels as 8-bit PNG")
        _check(data or b"", name, MAX_LABEL_PIXELS)
        with Image.open(io.BytesIO(data or b""), formats=(name,)) as image:
            return _ids(image, where)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded: {_brief(error)}; expected an 8-bit PNG of class ids") from error


def encode_mask(mask: Pixels) -> bytes:
    """Class ids (H, W) uint8 -> 8-bit grey PNG.

    Written by hand: every row minus the row above is nearly all zeros for a map of regions, and zlib's run-length
    strategy is made for those. Measured on 60 CamVid labels of 480 x 360: 0.4 ms and 4.8 kB a mask, against 1.1 ms
    and 4.8 kB for Pillow at level 1 with Z_RLE, and 1.7 ms and 5.4 kB for Pillow's defaults.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask is a uint8 array (H, W) of at least one pixel, found {mask.dtype} {mask.shape}")
    height, width = mask.shape
    rows = np.empty((height, 1 + width), np.uint8)
    rows[:, 0] = 2  # filter "up"
    rows[0, 1:] = mask[0]
    np.subtract(mask[1:], mask[:-1], out=rows[1:, 1:])  # modulo 256, as PNG wants it
    deflate = zlib.compressobj(1, zlib.DEFLATED, strategy=zlib.Z_RLE)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
            _png_chunk(b"IDAT", deflate.compress(rows.data) + deflate.flush()),
            _png_chunk(b"IEND", b""),
        )
    )


def encode_image(pixels: Pixels, format: str = "JPEG", quality: int = 92) -> bytes:
    """RGB pixels (H, W, 3) uint8 -> encoded bytes; `quality` counts for lossy formats."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, quality=quality)
    return buffer.getvalue()


def _accepted_format(data: bytes) -> str:
    if not data:
        raise ImageError("empty", "zero bytes")
    name = sniff(data)
    if name is None:
        raise ImageError("not_image", f"no known image format: {len(data)} bytes, {describe_stranger(data)}")
    if name not in ACCEPTED:
        raise ImageError("format_denied", f"{name} is not decoded here; accepted: {', '.join(ACCEPTED)}")
    return name


def _ids(image: Image.Image, where: str) -> Pixels:
    raw = raw_mode(image)
    ids = np.asarray(image)
    if image.mode in ("L", "P", "1"):
        ids = ids.astype(np.uint8)
        if "I" in raw.partition(";")[2]:  # a TIFF whose white is 0, which Pillow has turned over
            ids = (1 if image.mode == "1" else 255) - ids
        return ids // np.uint8(_GREY_STEPS.get(raw[:3], 1))
    if image.mode == "I" or image.mode.startswith("I;16"):
        if ids.min() < 0 or ids.max() > 255:
            raise DataError(
                f"{where}: found class ids from {ids.min()} to {ids.max()}, expected 0 to 255; map them to 8 bits"
            )
        return ids.astype(np.uint8)
    raise DataError(
        f"{where}: found {image.mode} colours, expected one channel of class ids; "
        "map each colour to its id and store an 8-bit PNG"
    )


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _brief(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message holds a memory address
        return "the header cannot be read"
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
