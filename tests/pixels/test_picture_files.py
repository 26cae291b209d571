"""Picture files: whole, upright and scaled, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, TiffImagePlugin
from pixels import RED, WHITE, assert_same, noise, plain

from gradcam_kit.errors import PictureError
from gradcam_kit.pixels.decoding import read_picture
from gradcam_kit.pixels.pictures import rgb_picture, write_picture


def _converted(image: Image.Image, mode: str) -> Image.Image:
    between = {"La": "LA", "PA": "LA", "RGBa": "RGBA"}.get(mode)
    return image.convert(between).convert(mode) if between else image.convert(mode)


@pytest.mark.parametrize("name", ["a.png", "picture.PNG", "bär 図.png", "a.tif", "a.bmp", "a.webp"])
def test_written_pictures_are_read_back(tmp_path, name):
    picture = np.repeat(np.repeat(noise(3, 4, 3), 16, axis=0), 16, axis=1)
    write_picture(tmp_path / name, picture)
    difference = np.abs(read_picture(tmp_path / name).astype(int) - picture)
    assert difference.max() == 0 if not name.endswith("webp") else difference.mean() < 4


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_jpeg_is_written_in_rgb_with_quality_92(tmp_path, name):
    write_picture(str(tmp_path / name), plain(RED, 32, 32))
    assert np.abs(read_picture(str(tmp_path / name)).astype(int) - RED).max() <= 3
    with Image.open(tmp_path / name) as image:
        assert image.format == "JPEG"
        # The tables of the standard scaled by (200 - 2 * 92) / 100: 16 -> 3, 17 -> 3.
        assert (image.quantization[0][0], image.quantization[1][0]) == (3, 3)


def test_write_takes_what_overlay_takes(tmp_path):
    picture = noise(8, 6, 3)
    write_picture(tmp_path / "a.png", torch.from_numpy(picture).permute(2, 0, 1) / 255)
    assert_same(read_picture(tmp_path / "a.png"), picture)


ORIENTED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation_turns_pictures_upright(tmp_path, orientation, suffix):
    upright = noise(4, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTED[orientation](upright)))
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert_same(read_picture(tmp_path / f"a.{suffix}"), upright)


def test_exif_orientation_of_a_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.concatenate([plain(RED, 32, 64), plain((0, 0, 255), 32, 64)])
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.shape == (64, 64, 3)
    assert np.abs(picture[5, -5].astype(int) - RED).max() <= 5  # its top is on the right after a quarter turn clockwise
    assert np.abs(picture[5, 5].astype(int) - (0, 0, 255)).max() <= 5


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path, suffix):
    levels = np.uint16([[0, 256, 32768, 65535]])
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), levels)
    assert_same(read_picture(tmp_path / f"a.{suffix}")[0, :, 0], np.uint8([0, 1, 128, 255]))


def test_16_bit_colors_are_scaled_and_not_clipped(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.uint16([[[65535, 32768, 256]]]))  # BGR
    assert_same(read_picture(tmp_path / "a.png"), np.uint8([[[1, 128, 255]]]))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (5, 3), WHITE).convert(mode).save(tmp_path / "a.png")
    assert_same(read_picture(tmp_path / "a.png"), plain(WHITE, 3, 5))


def test_palette_and_opacity_keep_their_colors(tmp_path):
    Image.new("RGB", (5, 3), RED).convert("P").save(tmp_path / "palette.png")
    Image.new("RGBA", (5, 3), (*RED, 0)).save(tmp_path / "clear.png")
    assert_same(read_picture(tmp_path / "palette.png"), plain(RED, 3, 5))
    assert_same(read_picture(tmp_path / "clear.png"), plain(RED, 3, 5))


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert np.abs(read_picture(tmp_path / "a.jpg").astype(int) - RED).max() <= 5
    assert_same(read_picture(tmp_path / "a.tif"), plain(RED, 16, 16))


def test_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert_same(read_picture(tmp_path / "a.gif"), plain(RED, 4, 4))


@pytest.mark.parametrize("tolerated", [False, True])
@pytest.mark.parametrize("options", [{"format": "jpeg"}, {"format": "jpeg", "progressive": True}, {"format": "png"}])
def test_truncated_file_is_an_error_and_never_half_a_picture(tmp_path, monkeypatch, options, tolerated):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerated)
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "whole", **options)
    encoded = (tmp_path / "whole").read_bytes()
    assert read_picture(tmp_path / "whole").shape == (64, 64, 3)
    for share in (0.01, 0.5, 0.98):
        (tmp_path / "cut.jpg").write_bytes(encoded[: int(share * len(encoded))])
        with pytest.raises(PictureError, match=r"cannot read the picture '.*cut\.jpg'"):
            read_picture(tmp_path / "cut.jpg")
    assert tolerated == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PictureError, match=r"bad\.png"):
        read_picture(path)


def test_float_file_out_of_range_names_the_file(tmp_path):
    Image.fromarray(np.float32([[0, 300]])).save(tmp_path / "depth.tif")
    with pytest.raises(PictureError, match=r"depth\.tif.*from 0 to 300"):
        read_picture(tmp_path / "depth.tif")


def deep_tiff(values: np.ndarray, bits: int, kind: int) -> bytes:
    """A gray or color TIFF of one strip, with values as they are."""
    channels = 1 if values.ndim == 2 else 3
    packed = values.tobytes()
    if bits == 12:
        low, high = (values.ravel()[i::2].astype(int) for i in (0, 1))
        packed = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], 1).astype(np.uint8).tobytes()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    known = {
        256: values.shape[1],
        257: values.shape[0],
        258: (bits,) * channels,
        259: 1,
        262: 1 if channels == 1 else 2,
    }
    for tag, value in {
        **known,
        273: 0,
        277: channels,
        278: values.shape[0],
        279: len(packed),
        339: (kind,) * channels,
    }.items():
        tags[tag] = value
    return b"II*\0\x08\0\0\0" + tags.tobytes(8) + packed


RAMP = np.arange(64).reshape(8, 8) * 4


@pytest.mark.parametrize(
    ("bits", "kind", "dtype", "levels"), [(16, 1, "u2", 257), (12, 1, "u2", 16), (16, 2, "i2", 128)]
)
def test_the_depth_of_a_gray_file_says_what_is_white(tmp_path, bits, kind, dtype, levels):
    (tmp_path / "a.tif").write_bytes(deep_tiff((RAMP * levels).astype(f"<{dtype}"), bits, kind))
    expected = RAMP // 2 if kind == 2 else RAMP  # with a sign the upper half is empty
    assert_same(read_picture(tmp_path / "a.tif")[..., 0], expected.astype(np.uint8))


@pytest.mark.parametrize(
    "kind", ["int32", "uint32", "int32 color", "float32", "float32 color", "int16 color", "-int16"]
)
def test_a_file_that_does_not_say_what_is_white_is_an_error_and_not_black_or_white(tmp_path, kind):
    values = np.stack([RAMP] * 3, 2) if "color" in kind else RAMP
    dtype = kind.split()[0].removeprefix("-")
    values = (-values if kind[0] == "-" else values).astype(dtype)
    kinds = {"u": 1, "i": 2, "f": 3}
    (tmp_path / "a.tif").write_bytes(deep_tiff(values, values.itemsize * 8, kinds[dtype[0]]))
    with pytest.raises(PictureError, match=r"a\.tif.*from (0 to 252|-252 to 0), do not tell which.*8 or 16 bits"):
        read_picture(tmp_path / "a.tif")


def test_a_gray_image_in_memory_with_8_bit_values_is_not_taken_for_16_bit():
    with pytest.raises(PictureError, match="from 0 to 252, do not tell"):
        rgb_picture(Image.fromarray(RAMP.astype(np.int32)))
    assert_same(rgb_picture(Image.new("I", (4, 2), 0)), plain((0, 0, 0), 2, 4))


def test_a_float_file_in_range_keeps_its_levels(tmp_path):
    for name, values in (("gray", RAMP), ("color", np.stack([RAMP] * 3, 2))):
        (tmp_path / name).write_bytes(deep_tiff((values / 255).astype(np.float32), 32, 3))
        assert_same(read_picture(tmp_path / name)[..., 0], RAMP.astype(np.uint8))


@pytest.mark.parametrize("name", ["a.xyz", "a", "missing/a.png", "x" * 300 + ".png"])
def test_places_that_cannot_be_written_are_named(tmp_path, name):
    with pytest.raises(PictureError, match=Path(name).name[:100]):
        write_picture(tmp_path / name, plain(RED))


def test_names_that_are_not_utf8_can_be_read_and_written(tmp_path):
    path = tmp_path / "\udce4.png"
    try:
        write_picture(path, plain(RED))
    except PictureError:
        pytest.skip("the file system takes only UTF-8")
    assert_same(read_picture(path), plain(RED))
    path.write_bytes(b"")
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    str(caught.value).encode()  # can be printed and stored
