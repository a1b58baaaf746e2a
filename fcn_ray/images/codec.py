"""Encoded bytes <-> arrays. Every image that training and inference see was decoded here, by the same rules.

Content decides, never a name. The header is checked before pixels are decoded. ICC profiles are not applied.
What is unusual about an image that decodes is told by a flag:

==============  ====================================================================================================
exif_rotated    EXIF orientation applied: the array is upright
cmyk            CMYK or YCCK converted to RGB without a colour profile
sixteen_bit     16 bits per channel scaled to 8 over the whole range: grey by round(v / 257), colours by v >> 8
float           floating-point grey: values within 0..1 times 255, others clipped to 0..255; rounded
alpha           transparency dropped: colours stay as stored, as in most loaders (the classes decide, not the matte)
palette         palette looked up
multi_frame     only the first frame of an animation or of several pages was read
==============  ====================================================================================================
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Image.open knows BMP, GIF, JPEG and PNG from the start; to find these two it would load all of Pillow's parsers.
from PIL import TiffImagePlugin as TiffImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from fcn_ray.errors import DataError
from fcn_ray.images.formats import ACCEPTED, is_cut, png_damage, sniff
from fcn_ray.images.geometry import Pixels

LABEL_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
"""Lossless formats; JPEG and WebP blend the ids of neighbours."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright (1 is upright already)."""

_MODE_FLAGS = {"CMYK": "cmyk", "P": "palette", "PA": "palette", "F": "float"}

_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Pillow stretches 2- and 4-bit grey to 0..255; ids are the value divided by this step."""


class ImageError(Exception):
    """An image that cannot be had. Not an FcnRayError: a bad image becomes a row with `status` and `message`."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """`pixels` (H, W, 3) uint8 RGB, perhaps read-only, and what was unusual about the image."""

    pixels: Pixels
    flags: tuple[str, ...] = ()


def decode_image(data: bytes | None, max_pixels: int) -> Decoded:
    """Encoded image -> upright RGB pixels.

    Raises ImageError with the status empty, null, not_image, format_denied, truncated, corrupt, too_big (more than
    `max_pixels`, or than Pillow's own limit, by the header; or no memory for the pixels) or non_finite; nothing else.
    """
    if data is None:
        raise ImageError("null", "the cell holds no bytes")
    name = _accepted_format(data)
    try:
        if name == "PNG" and (damage := png_damage(data)):
            raise ImageError(*damage)
        with Image.open(io.BytesIO(data), formats=(name,)) as image:
            if image.width * image.height > max_pixels:
                raise ImageError("too_big", f"{image.height} x {image.width} pixels, the limit is {max_pixels}")
            return _decode(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageError("too_big", str(error) or f"no memory to decode {len(data)} bytes of {name}") from error
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error... on damaged images
        cut = is_cut(data, name) or "truncated" in str(error)
        raise ImageError("truncated" if cut else "corrupt", f"{name}, {len(data)} bytes: {_brief(error)}") from error


def decode_label(data: bytes | None, where: str = "label") -> Pixels:
    """Encoded label or mask -> class ids (H, W) uint8, exactly as stored: a palette's indices, never its colours.

    EXIF orientation is not applied. Raises DataError, which names the label as `where`, for what cannot be ids.
    """
    try:
        name = _accepted_format(data or b"")
        if name not in LABEL_FORMATS:
            raise DataError(f"{where}: {name} is lossy and blends class ids; store labels as 8-bit PNG")
        if name == "PNG" and (damage := png_damage(data or b"")):
            raise ImageError(*damage)
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
        raise ImageError("not_image", f"{len(data)} bytes that begin with {data[:16]!r} are no known image format")
    if name not in ACCEPTED:
        raise ImageError("format_denied", f"{name} is not decoded here; accepted: {', '.join(ACCEPTED)}")
    return name


def _decode(image: Image.Image) -> Decoded:
    flags = [_MODE_FLAGS[image.mode]] if image.mode in _MODE_FLAGS else []
    if ";16" in _raw_mode(image):
        flags.append("sixteen_bit")
    turned = _orientation(image) in _UPRIGHT  # asked first: loading a TIFF turns it upright and forgets
    image.load()
    orientation = _orientation(image)
    if turned or orientation in _UPRIGHT:
        flags.append("exif_rotated")
    if image.has_transparency_data:
        flags.append("alpha")
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    pixels = _rgb(upright)
    if getattr(image, "is_animated", False):  # asked last: it moves on to the second frame
        flags.append("multi_frame")
    return Decoded(pixels, tuple(flags))


def _rgb(image: Image.Image) -> Pixels:
    """Pixels of a loaded image as RGB; the rules are in the table above."""
    if image.mode == "RGB":
        return np.asarray(image)  # no convert: it would copy
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
    elif image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ImageError("non_finite", "floating-point pixels hold NaN or infinity")
        unit = values.min() >= 0 and values.max() <= 1
        grey = np.rint(np.clip(values * (255.0 if unit else 1.0), 0, 255))
    elif image.mode == "I":
        raise ImageError("format_denied", "32-bit integer pixels have no agreed range; store 8 or 16 bits")
    else:
        return np.asarray(image.convert("RGB"))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _ids(image: Image.Image, where: str) -> Pixels:
    raw = _raw_mode(image)
    ids = np.asarray(image)
    if image.mode in ("L", "P", "1"):
        return ids.astype(np.uint8) // np.uint8(_GREY_STEPS.get(raw, 1))
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


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, for example "RGB;16B"; empty where Pillow's plugin does not tell."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block says nothing against the pixels
        return 1


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _brief(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message holds a memory address
        return "the header cannot be read"
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
