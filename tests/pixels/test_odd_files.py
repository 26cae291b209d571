"""Files of cameras and scanners that keep to no standard: EXIF with tags of other types, white as 0, 12 bits in 16."""

import io
import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from gradcam_kit.pixels.decoding import decode_picture, looks_like_twelve_bits, read_picture

LEFT_TOP = np.zeros((24, 40, 3), np.uint8)
LEFT_TOP[:8, :8] = 255  # a mark that shows how a picture was turned
WHERE = {  # of the mark in the upright picture: whether at the bottom, whether at the right
    1: (False, False),
    2: (False, True),
    3: (True, True),
    4: (True, False),
    5: (False, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}


def exif(orientation, kind=3, maker=b"\x05\x00\x01\x00\x00\x00", tail=b""):
    """EXIF with the maker of the camera as another type than text, and an orientation of any type."""
    values = {3: struct.pack("<HH", orientation, 0), 4: struct.pack("<I", orientation), 2: b"%d\0\0\0" % orientation}
    count = 2 if kind == 2 else 1
    entries = struct.pack("<H", 0x010F) + maker + struct.pack("<I", 38)
    entries += struct.pack("<HHI", 0x0112, kind, count) + values[kind]
    return (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", 2)
        + entries
        + struct.pack("<I", 0)
        + struct.pack("<II", 3, 2)
        + tail
    )


def saved(picture, kind, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", [2, 3, 4], ids=["text", "short", "long"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_read_whatever_else_the_exif_holds(orientation, kind):
    picture = decode_picture(saved(LEFT_TOP, "JPEG", exif=exif(orientation, kind)))
    assert picture.shape[:2] == ((40, 24) if orientation > 4 else (24, 40))
    at_bottom, at_right = WHERE[orientation]
    rows = picture[-8:] if at_bottom else picture[:8]
    assert (rows[:, -8:] if at_right else rows[:, :8]).mean() > 200
    assert picture.mean() < 40


@pytest.mark.parametrize("maker", [5, 10, 12, 13, 1])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_tag_of_an_odd_type_keeps_no_picture_from_being_turned(form, maker):
    file = saved(LEFT_TOP, form, exif=exif(6, maker=struct.pack("<HI", maker, 1)))
    assert decode_picture(file).shape == (40, 24, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("content", [b"Exif\0\0garbage", exif(6)[:20], b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_says_nothing_about_the_orientation(content):
    assert decode_picture(saved(LEFT_TOP, "JPEG", exif=content)).shape == (24, 40, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    assert decode_picture(saved(LEFT_TOP, "JPEG", exif=exif(orientation))).shape == (24, 40, 3)


def test_a_tiff_is_turned_once(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", LEFT_TOP, extratags=[(274, 3, 1, 6, True)])
    picture = read_picture(tmp_path / "a.tif")
    assert picture.shape == (40, 24, 3)
    assert picture[:8, -8:].min() == 255


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=["plain", "zlib", "tiles"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_white_as_0_is_white_with_any_number_of_bits(tmp_path, kind, order, options):
    most = 1 if kind is np.float32 else np.iinfo(kind).max
    values = np.full((16, 16), most / 8, kind)
    values[:8] = most
    found = {}
    for photometric in ("miniswhite", "minisblack"):
        tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, byteorder=order, **options)
        found[photometric] = read_picture(tmp_path / "a.tif").astype(int)
    assert found["minisblack"][0, 0, 0] == 255
    assert abs(found["minisblack"][-1, 0, 0] - 32) <= 1
    assert found["miniswhite"][0, 0, 0] == 0
    assert abs(found["miniswhite"][-1, 0, 0] - 223) <= 1


def test_white_as_0_is_white_with_a_single_bit(tmp_path):
    bits = np.zeros((16, 16), bool)
    bits[:8] = True
    tifffile.imwrite(tmp_path / "a.tif", bits, photometric="miniswhite", bitspersample=1)
    assert read_picture(tmp_path / "a.tif")[[0, -1], 0, 0].tolist() == [0, 255]


def test_cmyk_is_not_taken_for_white_as_0(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    red, green, _ = read_picture(tmp_path / "a.tif")[0, 0].tolist()
    assert red > 200
    assert green < 60


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((8, 8), 4095, np.uint16), True),
        (np.full((8, 8), 4096, np.uint16), False),
        (np.full((8, 8, 3), 3000, np.uint16), True),
        (np.full((8, 8, 3), 30000, np.uint16), False),
        (np.full((8, 8), 10, np.uint8), False),
        (np.zeros((8, 8), np.uint16), False),
    ],
)
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_12_bits_in_16_are_seen(tmp_path, values, expected, ending):
    path = tmp_path / f"a{ending}"
    cv2.imwrite(str(path), values)
    with open(path, "rb") as file:
        assert looks_like_twelve_bits(file) is expected


def test_12_bits_in_16_are_seen_where_0_is_white(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), 3000, np.uint16), photometric="miniswhite")
    with open(tmp_path / "a.tif", "rb") as file:
        assert looks_like_twelve_bits(file)
