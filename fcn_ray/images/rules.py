"""From an image that Pillow has opened to upright RGB pixels: one rule for each kind of image.

What is unusual about an image that decodes is told by a flag:

==============  ====================================================================================================
exif_rotated    EXIF orientation applied: the array is upright
cmyk            CMYK or YCCK converted to RGB without a colour profile
sixteen_bit     16 or 12 bits per channel scaled to 8 over the whole range: grey by round(v / 257), 12-bit grey by
                round(255 v / 4095), colours by v >> 8
float           floating-point grey: values within 0..1 times 255, others clipped to 0..255; rounded
alpha           transparency dropped: colours stay as stored, as in most loaders (the classes decide, not the matte);
                those that a TIFF stores multiplied by it are divided again
palette         palette looked up
icc_profile     there is a colour profile, sound or not, which was not applied
multi_frame     only the first frame of an animation or of several pages was read
==============  ====================================================================================================

One bit is black and white. Signed, complex and 32-bit integers, floating-point colours and 12-bit JPEG are
`format_denied`: there is no rule for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile

from fcn_ray.images.geometry import Pixels

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

_TWELVE_BITS = "I;12"
"""Pillow's name for 12-bit grey, which it gives as 0..4095 in 16 bits."""


_FIVE_SIX_FIVE = "BGR;16"
"""Pillow's name for BMP of 16 bits for all three channels."""


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


def apply_rules(image: ImageFile.ImageFile) -> Decoded:
    """Load `image` and make it upright RGB. Raises ImageError non_finite or format_denied, and what Pillow raises."""
    raw = raw_mode(image)
    flags = [_MODE_FLAGS[image.mode]] if image.mode in _MODE_FLAGS else []
    if (";16" in raw and raw != _FIVE_SIX_FIVE) or raw == _TWELVE_BITS:
        flags.append("sixteen_bit")
    _set_byte_order(image)
    # Loading a TIFF turns it upright and forgets; to ask a PNG loads it, and what went wrong then would be forgotten.
    turned = image.format == "TIFF" and _orientation(image) in _UPRIGHT
    image.load()
    orientation = _orientation(image)
    if turned or orientation in _UPRIGHT:
        flags.append("exif_rotated")
    if image.has_transparency_data:
        flags.append("alpha")
    if "icc_profile" in image.info:
        flags.append("icc_profile")
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    pixels = _rgb(upright, 4095 if raw == _TWELVE_BITS else 65535)
    if getattr(image, "is_animated", False):  # asked last: it moves on to the second frame
        flags.append("multi_frame")
    return Decoded(pixels, tuple(flags))


def _set_byte_order(image: ImageFile.ImageFile) -> None:
    """Have compressed big-endian floats read as libtiff gives them, in the machine's order: Pillow swaps them again."""
    tile = image.tile[0] if image.tile else None
    if tile and tile.codec_name == "libtiff" and isinstance(tile.args, tuple) and tile.args[0] == "F;32BF":
        image.tile = [tile._replace(args=("F;32NF", *tile.args[1:]))]


def _rgb(image: Image.Image, highest: int) -> Pixels:
    """Pixels of a loaded image as RGB, by the rules in the table above; `highest` is the white of 16-bit grey."""
    if image.mode == "RGB":
        return np.asarray(image)  # no convert: it would copy
    if image.mode == "La":
        return np.asarray(image.convert("LA").convert("RGB"))
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + highest // 2) // highest
    elif image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ImageError("non_finite", "floating-point pixels hold NaN or infinity")
        unit = values.min() >= 0 and values.max() <= 1
        grey = np.rint(np.clip(values * (255.0 if unit else 1.0), 0, 255))
    elif image.mode == "I":
        raise ImageError("format_denied", "integer pixels of 32 bits have no agreed range; store 8 or 16 bits")
    else:
        return np.asarray(image.convert("RGB"))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def raw_mode(image: Image.Image) -> str:
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
