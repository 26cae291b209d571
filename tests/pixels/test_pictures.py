"""PIL images, arrays and tensors: every mode and layout becomes RGB."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pixels import RED, WHITE, assert_same, noise, plain

from gradcam_kit.pixels.pictures import rgb_picture
from gradcam_kit.render import overlay

# Pitfall 80: layouts and kinds.

FORMS = {
    "HWC uint8": lambda p: p,
    "CHW uint8": lambda p: p.transpose(2, 0, 1),
    "HWC float32": lambda p: p.astype(np.float32) / 255,
    "HWC float64": lambda p: p / 255,
    "CHW float64": lambda p: p.transpose(2, 0, 1) / 255,
    "HWC longdouble": lambda p: p.astype(np.longdouble) / 255,
    "HWC big-endian": lambda p: (p / 255).astype(">f4"),
    "HWC read-only": lambda p: np.frombuffer(p.tobytes(), np.uint8).reshape(p.shape),
    "HWC negative strides": lambda p: np.ascontiguousarray(p[::-1, :, ::-1])[::-1, :, ::-1],
    "RGBA": lambda p: np.concatenate([p, noise(*p.shape[:2], 1)], axis=2),
    "RGBA CHW": lambda p: np.concatenate([p, noise(*p.shape[:2], 1)], axis=2).transpose(2, 0, 1),
    "tensor HWC": torch.from_numpy,
    "tensor CHW": lambda p: torch.from_numpy(p).permute(2, 0, 1),
    "tensor CHW float32": lambda p: torch.from_numpy(p).permute(2, 0, 1) / 255,
    "tensor CHW float64": lambda p: torch.from_numpy(p).permute(2, 0, 1).double() / 255,
    "tensor with graph": lambda p: (torch.from_numpy(p) / 255).requires_grad_(),
    "PIL": Image.fromarray,
    "PIL RGBA": lambda p: Image.fromarray(np.concatenate([p, noise(*p.shape[:2], 1)], axis=2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_pitfall_80_every_layout_gives_the_same_bytes(form):
    picture, heatmap = noise(11, 7, 3), np.random.default_rng(1).random((4, 5))
    given = FORMS[form](picture)
    assert_same(overlay(given, heatmap, alpha=0.4), overlay(picture, heatmap, alpha=0.4))
    assert_same(overlay(given, heatmap, alpha=0), picture)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((4, 4, 3), 2), ((3, 4, 4), 0), ((3, 5, 3), 2), ((1, 8, 4), 0), ((4, 8, 1), 2), ((4, 5, 4), 2), ((1, 1, 3), 2)],
)
def test_channels_of_small_pictures_are_the_axis_of_3_else_1_else_4_and_the_last_of_two(shape, channels):
    picture = noise(*shape)
    expected = np.moveaxis(picture, channels, 2)[..., :3]
    assert_same(overlay(picture, np.zeros((2, 2)), alpha=0), np.broadcast_to(expected, (*expected.shape[:2], 3)))


GRAY_FORMS = {
    "HW": lambda g: g,
    "HW1": lambda g: g[..., None],
    "1HW": lambda g: g[None],
    "HW float": lambda g: g / 255,
    "tensor": torch.from_numpy,
    "tensor 1HW": lambda g: torch.from_numpy(g)[None] / 255,
    "PIL L": Image.fromarray,
    "PIL I;16": lambda g: Image.fromarray(g.astype(np.uint16) * 257),
    "PIL I": lambda g: Image.fromarray(g.astype(np.int32) * 257),
    "PIL F": lambda g: Image.fromarray((g / 255).astype(np.float32)),
    "PIL LA": lambda g: Image.fromarray(g).convert("LA"),
    "PIL P": lambda g: Image.fromarray(g).convert("P"),
}


@pytest.mark.parametrize("form", GRAY_FORMS)
@pytest.mark.parametrize("shape", [(11, 7), (4, 4)])
def test_pitfall_80_gray_pictures_become_three_equal_channels(form, shape):
    gray, heatmap = noise(*shape), np.random.default_rng(1).random((4, 5))
    assert_same(overlay(GRAY_FORMS[form](gray), heatmap, alpha=0), np.repeat(gray[..., None], 3, axis=2))


def test_pitfall_80_gray_without_a_channel_axis_may_have_three_rows_or_columns():
    for shape in ((3, 5), (5, 3), (3, 3), (1, 4)):
        gray = noise(*shape)
        assert_same(overlay(gray, np.zeros((2, 2)), alpha=0), np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "I;16"])
def test_pil_images_of_every_mode_show_their_color(mode):
    full = {"I": 65535, "I;16": 65535}.get(mode)
    image = Image.new(mode, (4, 2), full) if full else _converted(Image.new("RGB", (4, 2), WHITE), mode)
    assert_same(rgb_picture(image), plain(WHITE, 2, 4))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    between = {"La": "LA", "PA": "LA", "RGBa": "RGBA"}.get(mode)
    return image.convert(between).convert(mode) if between else image.convert(mode)


def test_palette_with_transparent_entries_keeps_its_colors():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.info["transparency"] = bytes([0, 128])
    assert_same(rgb_picture(image), np.uint8([[RED, (0, 0, 255)]]))
