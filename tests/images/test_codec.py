"""Decoding and encoding. The whole catalogue of bad and odd images is in test_catalogue.py."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms, ImageFile

from fcn_ray.errors import DataError
from fcn_ray.images.codec import ImageError, decode_image, decode_label, encode_image, encode_mask
from fcn_ray.images.formats import sniff
from fcn_ray.tables.schema import BAD_STATUSES
from tests.images import tiffs

LIMIT = 1_000_000
NOISE = np.random.default_rng(7).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)
SMOOTH = Image.fromarray(np.indices((48, 64)).sum(0).astype(np.uint8)).convert("RGB")


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, colour, rows=b"", before=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(values, colour):
    """16-bit PNG from an array (H, W, channels)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour, rows)


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def float_tiff(values):
    return encoded(Image.fromarray(np.asarray(values, np.float32)), "TIFF")


JPEG, PNG, GIF = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG"), encoded(PICTURE, "GIF")
WEBP, BMP, TIFF = encoded(PICTURE, "WEBP"), encoded(PICTURE, "BMP"), encoded(PICTURE, "TIFF", compression="tiff_lzw")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"

BAD = {
    "null cell": (None, "null"),
    "zero bytes": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "not_image"),
    "json": (b'{"error": "not found"}', "not_image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_image"),
    "random": (np.random.default_rng(1).bytes(1000), "not_image"),
    "text that begins like a BMP": (b"BMW is a maker of cars", "not_image"),
    "eps": (EPS, "format_denied"),
    "psd": (b"8BPS\x00\x01" + bytes(20), "format_denied"),
    "pdf": (b"%PDF-1.7\n", "format_denied"),
    "jpeg 2000": (encoded(PICTURE, "JPEG2000"), "format_denied"),
    "avif": (b"\x00\x00\x00\x20ftypavif" + bytes(40), "format_denied"),
    "ico": (encoded(PICTURE, "ICO"), "format_denied"),
    "ppm": (encoded(PICTURE, "PPM"), "format_denied"),
    "32-bit integers": (encoded(Image.fromarray(np.arange(12, dtype=np.int32).reshape(3, 4)), "TIFF"), "format_denied"),
    "jpeg cut in half": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg without its last two bytes": (JPEG[:-2], "truncated"),
    "jpeg of four bytes": (JPEG[:4], "truncated"),
    "progressive jpeg cut": (encoded(PICTURE, "JPEG", progressive=True)[:2000], "truncated"),
    "png cut in half": (PNG[: len(PNG) // 2], "truncated"),
    "png without IEND": (PNG[:-12], "truncated"),
    "png without the checksum of IEND": (PNG[:-4], "truncated"),
    "png signature alone": (PNG[:8], "truncated"),
    "png of half a row": (png(64, 48, 8, 2, bytes(100)), "truncated"),
    "gif cut": (GIF[:-500], "truncated"),
    "webp cut": (WEBP[:-100], "truncated"),
    "bmp cut": (BMP[: len(BMP) // 2], "truncated"),
    "gif of twelve bytes": (GIF[:12], "truncated"),
    "bmp of twenty bytes": (BMP[:20], "truncated"),
    "tiff cut before its directory": (TIFF[: len(TIFF) // 2], "truncated"),
    "tiff header alone": (TIFF[:6], "truncated"),
    "png data checksum": (flipped(PNG, PNG.index(b"IEND") - 6), "corrupt"),
    "png header checksum": (flipped(PNG, 30), "corrupt"),
    "png without pixels": (png(0, 0, 8, 0), "corrupt"),
    "png with a zlib bomb in its text": (
        png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(80_000_000)))),
        "corrupt",
    ),
    "jpeg of garbage": (b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9", "corrupt"),
    "webp of garbage": (b"RIFF" + struct.pack("<I", 40) + b"WEBPVP8 " + bytes(32), "corrupt"),
    "png of 10^10 pixels": (png(100_000, 100_000, 8, 2), "too_big"),
    "png of 144 megapixels": (png(12_000, 12_000, 1, 0), "too_big"),
    "float nan": (float_tiff([[0.0, np.nan]]), "non_finite"),
    "float infinity": (float_tiff([[0.0, -np.inf]]), "non_finite"),
}


@pytest.mark.parametrize(("data", "status"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_image_raises_its_status(data, status):
    with pytest.raises(ImageError) as caught:
        decode_image(data, LIMIT)
    assert caught.value.status == status
    assert status in BAD_STATUSES
    assert caught.value.message
    assert "0x7" not in caught.value.message  # memory addresses would make equal rows differ


RGBA = PICTURE.convert("RGBA")
RGBA.putalpha(Image.fromarray(NOISE[..., 0]))
PALETTE = PICTURE.quantize(16)
OTHER = PICTURE.transpose(Image.Transpose.ROTATE_180)
SEVERAL = {"save_all": True, "append_images": [OTHER]}

ODD = {
    "rgb jpeg": (JPEG, ()),
    "progressive jpeg": (encoded(PICTURE, "JPEG", progressive=True), ()),
    "grey jpeg": (encoded(PICTURE.convert("L"), "JPEG"), ()),
    "rgb png": (PNG, ()),
    "webp": (WEBP, ()),
    "bmp": (BMP, ()),
    "tiff": (TIFF, ()),
    "one bit": (encoded(PICTURE.convert("1"), "PNG"), ()),
    "cmyk jpeg": (encoded(PICTURE.convert("CMYK"), "JPEG"), ("cmyk",)),
    "cmyk tiff": (encoded(PICTURE.convert("CMYK"), "TIFF"), ("cmyk",)),
    "ycbcr tiff": (encoded(PICTURE.convert("YCbCr"), "TIFF"), ()),
    "rgba png": (encoded(RGBA, "PNG"), ("alpha",)),
    "rgba webp": (encoded(RGBA, "WEBP"), ("alpha",)),
    "grey and alpha": (encoded(RGBA.convert("LA"), "PNG"), ("alpha",)),
    "transparent colour": (encoded(PICTURE, "PNG", transparency=(1, 2, 3)), ("alpha",)),
    "palette png": (encoded(PALETTE, "PNG"), ("palette",)),
    "palette with transparency": (encoded(PALETTE, "PNG", transparency=0), ("palette", "alpha")),
    "gif": (GIF, ("palette",)),
    "16-bit rgb": (deep_png(NOISE.astype(np.uint16) * 257, 2), ("sixteen_bit",)),
    "animated gif": (encoded(PICTURE, "GIF", **SEVERAL), ("palette", "multi_frame")),
    "animated png": (encoded(PICTURE, "PNG", **SEVERAL), ("multi_frame",)),
    "animated webp": (encoded(PICTURE, "WEBP", **SEVERAL), ("multi_frame",)),
    "tiff of two pages": (encoded(PICTURE, "TIFF", **SEVERAL), ("multi_frame",)),
    "two-picture jpeg": (encoded(PICTURE, "MPO", **SEVERAL), ("multi_frame",)),
    "broken exif": (encoded(PICTURE, "PNG", exif=b"Exif\0\0garbage, not TIFF"), ()),
    "orientation in words": (
        encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abcd\0\0\0\0"),
        (),
    ),
    "colour profile": (
        encoded(PICTURE, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        ("icc_profile",),
    ),
}


@pytest.mark.parametrize(("data", "flags"), ODD.values(), ids=ODD)
@pytest.mark.filterwarnings("ignore")
def test_an_odd_image_decodes_as_pillow_does_and_says_so(data, flags):
    decoded = decode_image(data, LIMIT)
    assert decoded.flags == flags
    assert decoded.pixels.dtype == np.uint8
    np.testing.assert_array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_ycck_jpeg_is_near_its_colours():
    smooth = SMOOTH.convert("CMYK")
    pixels = decode_image(encoded(smooth, "JPEG", quality=95), LIMIT).pixels
    assert np.abs(pixels.astype(int) - np.asarray(SMOOTH)).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(format):
    values = np.array([[0, 128, 129, 257, 32_768, 65_535]], np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), format), LIMIT)
    assert decoded.flags == ("sixteen_bit",)
    assert decoded.pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (decoded.pixels == decoded.pixels[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 99.6, 300.0], [0, 100, 255]), ([-5.0, 0.5, 1.0], [0, 0, 1])],
    ids=["unit range", "byte range", "negative"],
)
def test_float_rule(values, expected):
    decoded = decode_image(float_tiff([values]), LIMIT)
    assert decoded.flags == ("float",)
    assert decoded.pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(format, orientation):
    upright = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3) * 40
    # How a camera held in each position stores the upright picture (EXIF 2.32, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)).convert("RGB"), format, exif=exif)
    decoded = decode_image(data, LIMIT)
    assert decoded.pixels[..., 0].tolist() == upright.tolist()
    assert decoded.flags == (("exif_rotated",) if orientation > 1 else ())


def test_the_limit_is_read_from_the_header_before_decoding():
    data = png(1000, 1001, 8, 0)  # no pixel in it: decoding would say "truncated"
    with pytest.raises(ImageError, match="1001 x 1000 pixels, the limit is 1000000"):
        decode_image(data, LIMIT)
    assert decode_image(encoded(PICTURE, "PNG"), 48 * 64).pixels.shape == (48, 64, 3)


def test_the_name_of_a_format_is_never_asked():
    assert [sniff(data) for data in (JPEG, PNG, WEBP, BMP, GIF, TIFF, EPS, b"hello")] == [
        *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "EPS", None)
    ]


def test_no_memory_is_a_status(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match="no memory to decode") as caught:
        decode_image(BMP, LIMIT)
    assert caught.value.status == "too_big"


@given(data=st.binary(max_size=200), head=st.sampled_from([b"", JPEG[:300], PNG[:60], GIF[:30], WEBP[:40], BMP, TIFF]))
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_nothing_but_image_errors_comes_out(data, head):
    try:
        status = decode_image(head + data, LIMIT) and "ok"
    except ImageError as error:
        status = error.status
    assert status in ("ok", *BAD_STATUSES)


def test_image_errors_cross_processes():
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "why")))
    assert (error.status, error.message, str(error)) == ("corrupt", "why", "why")


def test_plain_rgb_is_neither_converted_nor_copied(monkeypatch):
    """Pillow's convert copies even when there is nothing to convert; nearly all images are plain RGB."""

    def spend(self, *arguments):
        raise AssertionError("not free")

    for method in ("convert", "copy", "transpose"):
        monkeypatch.setattr(Image.Image, method, spend)
    assert decode_image(JPEG, LIMIT).pixels.shape == (48, 64, 3)


# ------------------------------------------------------------------------------------------------------------ masks

IDS = np.array([[0, 1, 2], [3, 0, 255]], np.uint8)


def palette_png(ids, **options):
    image = Image.fromarray(ids)
    image.putpalette([200, 10, 10] * 256)
    return encoded(image, "PNG", **options)


GOOD_LABELS = {
    "grey png": (encoded(Image.fromarray(IDS), "PNG"), IDS),
    "palette png": (palette_png(IDS), IDS),
    "palette png of 2 bits": (palette_png(IDS % 4, bits=2), IDS % 4),
    "one bit": (encoded(Image.fromarray(IDS > 1), "PNG"), IDS > 1),
    "grey png of 2 bits": (png(4, 1, 2, 0, b"\0\x1b"), [[0, 1, 2, 3]]),
    "grey png of 4 bits": (png(2, 1, 4, 0, b"\0\x1f"), [[1, 15]]),
    "16 bits": (encoded(Image.fromarray(IDS.astype(np.uint16)), "PNG"), IDS),
    "tiff": (encoded(Image.fromarray(IDS), "TIFF"), IDS),
    **{
        f"tiff of {bits} bits, white is {white}": (
            tiffs.strip(IDS >> 8 - bits, bits, 1 - white, compression),
            IDS >> 8 - bits,
        )
        for bits, compression in ((1, 1), (2, 8), (4, 1), (8, 8))
        for white in (0, 1)
    },
}


@pytest.mark.parametrize(("data", "ids"), GOOD_LABELS.values(), ids=GOOD_LABELS)
def test_labels_keep_their_ids(data, ids):
    label = decode_label(data)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, ids)


BAD_LABELS = {
    "colours": (PNG, "found RGB colours, expected one channel of class ids"),
    "alpha": (encoded(RGBA.convert("LA"), "PNG"), "found LA colours"),
    "jpeg": (encoded(Image.fromarray(IDS), "JPEG"), "JPEG is lossy"),
    "16 bits above 255": (encoded(Image.fromarray(np.array([[7, 256]], np.uint16)), "PNG"), "ids from 7 to 256"),
    "null": (None, "zero bytes"),
    "html": (b"<html>", "no known image format"),
    "cut": (PNG[:-12], "before its IEND chunk"),
}


@pytest.mark.parametrize(("data", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_what_cannot_be_ids_is_refused_with_its_place(data, message):
    with pytest.raises(DataError, match=message) as caught:
        decode_label(data, "street.parquet row 3")
    assert str(caught.value).startswith("street.parquet row 3: ")


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
@settings(deadline=None)
def test_masks_come_back_exactly(mask):
    data = encode_mask(mask)
    np.testing.assert_array_equal(decode_label(data), mask)
    assert Image.open(io.BytesIO(data)).mode == "L"


def test_masks_of_regions_are_smaller_than_pillows():
    mask = np.kron(np.random.default_rng(3).integers(0, 11, (12, 16)), np.ones((30, 30))).astype(np.uint8)
    assert len(encode_mask(mask)) < len(encoded(Image.fromarray(mask), "PNG"))


def test_masks_may_be_views():
    mask = np.arange(200, dtype=np.uint8).reshape(10, 20)[::2, 3:17]
    np.testing.assert_array_equal(decode_label(encode_mask(mask)), mask)


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_other_arrays_are_no_masks(mask):
    with pytest.raises(ValueError, match="a mask is a uint8 array"):
        encode_mask(mask)


def test_encoded_images_come_back():
    np.testing.assert_array_equal(decode_image(encode_image(NOISE, "PNG"), LIMIT).pixels, NOISE)
    smooth = np.asarray(SMOOTH)
    assert np.abs(decode_image(encode_image(smooth), LIMIT).pixels.astype(int) - smooth).max() < 8
