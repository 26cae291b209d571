"""Overlays of many pictures at once, on any device; inputs stay as they are, and errors say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pixels import RED, WHITE, assert_same, noise, plain
from waits import device, on_device

from gradcam_kit.errors import (
    GradCamKitError,
    InputError,
    PictureError,
    ShapeError,
    UnknownNameError,
)
from gradcam_kit.render import colorize, colormap_table, contact_sheet, overlay, overlays

# Many at once.


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHWC float", "NCHW float", "NHW", "N1HW"])
@pytest.mark.parametrize("size", [(5, 4), (33, 21), (50, 60)])
@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
def test_batch_equals_one_by_one_to_the_byte(layout, size, alpha):
    pictures = torch.from_numpy(noise(6, 33, 21, 3))
    heatmaps = torch.rand(6, *size, generator=torch.Generator().manual_seed(0))
    if layout.startswith("NCHW"):
        pictures = pictures.permute(0, 3, 1, 2)
    if layout.endswith("float"):
        pictures = pictures / 255
    if layout in ("NHW", "N1HW"):
        pictures = pictures[..., 0] if layout == "NHW" else pictures[..., 0][:, None]
    result = overlays(pictures, heatmaps, alpha=alpha, colormap="turbo")
    assert result.shape == (6, 33, 21, 3)
    for picture, heatmap, one in zip(pictures, heatmaps, result, strict=True):
        assert_same(overlay(picture, heatmap, alpha=alpha, colormap="turbo"), one)


def test_batch_of_nothing_is_nothing():
    assert overlays(torch.zeros(0, 3, 8, 6), torch.zeros(0, 2, 2)).shape == (0, 8, 6, 3)


def test_batch_of_three_gray_pictures_is_no_single_color_picture():
    assert overlays(torch.rand(3, 8, 6), torch.rand(3, 2, 2)).shape == (3, 8, 6, 3)


COPIED = ["painting.blended_on_device: a copy to the host"]
CHECKED = ["pictures.levels_of: a copy to the host"]


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("boxes", [None, (3, -2, 20, 40), [(0, 0, 9, 9), (1, 2, 8, 30), (0, 0, 9, 9), (5, 5, 30, 36)]])
def test_a_device_gives_the_bytes_of_the_host_and_copies_them_once(alpha, boxes):
    pictures, levels = torch.from_numpy(noise(4, 33, 21, 3)), torch.from_numpy(noise(4, 1, 1, seed=1))
    expected = overlays(pictures, levels, boxes=boxes, alpha=alpha)
    with device() as found:
        assert_same(overlays(on_device(pictures), on_device(levels), boxes=boxes, alpha=alpha), expected)
        assert found.waits == COPIED
        found.waits.clear()
        there = overlays(pictures.numpy(), on_device(levels / 255), boxes=boxes, alpha=alpha)  # pictures of the host
        assert found.waits == [*CHECKED, *COPIED]
    assert_same(there, expected)
    assert_same(overlays(pictures, levels.expand(4, 7, 6), boxes=boxes, alpha=alpha), expected)


def test_a_device_resizes_as_the_host_does_up_to_rounding():
    pictures, heatmaps = torch.from_numpy(noise(4, 224, 224, 3)), torch.rand(4, 7, 7)
    with device():
        there = overlays(on_device(pictures), on_device(heatmaps), alpha=1, colormap="jet")
    here = overlays(pictures, heatmaps, alpha=1, colormap="jet")
    difference = np.abs(there.astype(int) - here)
    assert difference.max() <= 4  # that of neighboring colors
    assert (difference.any(3)).mean() < 1e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
def test_cuda_gives_the_bytes_of_the_cpu(alpha):
    pictures, levels = torch.from_numpy(noise(4, 64, 48, 3)), torch.from_numpy(noise(4, 64, 48, seed=1))
    expected = overlays(pictures, levels, alpha=alpha)
    assert_same(overlays(pictures.cuda(), levels.cuda(), alpha=alpha), expected)
    assert_same(overlays(pictures.numpy(), levels.cuda() / 255, alpha=alpha), expected)
    assert_same(overlay(pictures[0].cuda(), levels[0], alpha=alpha), expected[0])


# Inputs stay as they are.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_inputs_are_never_modified(dtype):
    scale = 255 if dtype == torch.uint8 else 1
    pictures, heatmaps = (torch.rand(2, 3, 8, 6) * scale).to(dtype), (torch.rand(2, 8, 6) * scale).to(dtype)
    before = pictures.clone(), heatmaps.clone()
    overlays(pictures, heatmaps)
    overlay(pictures[0].numpy(), heatmaps[0].numpy())
    colorize(heatmaps)
    contact_sheet([pictures[0], pictures[1]], cell_size=20)
    assert torch.equal(pictures, before[0])
    assert torch.equal(heatmaps, before[1])


def test_result_does_not_share_memory_with_the_picture():
    picture = noise(6, 9, 3)
    overlay(picture, np.zeros((6, 9)), alpha=0)[:] = 0
    assert_same(picture, noise(6, 9, 3))


# Errors.

GOOD = np.zeros((4, 4))


@pytest.mark.parametrize(
    ("picture", "heatmap", "error", "message"),
    [
        (plain(RED) * 1.0, GOOD, PictureError, r"picture holds values from 0 to 255.*divide by 255"),
        (plain(RED) / 255 - 0.5, GOOD, PictureError, r"from -0\.5 to 0\.5.*undo the model's normalization"),
        (np.full((4, 4, 3), np.nan), GOOD, PictureError, "picture holds NaN"),
        (np.full((4, 4, 3), np.inf), GOOD, PictureError, "from inf to inf"),
        (plain(RED).astype(np.int64), GOOD, InputError, "int64.*cast levels to uint8"),
        (plain(RED).astype(np.uint16), GOOD, InputError, "uint16.*divide 16-bit values by 65535"),
        (torch.zeros(4, 4, 3, dtype=torch.int64), GOOD, InputError, "torch.int64"),
        (np.zeros((4, 4, 3), bool), GOOD, InputError, "bool"),
        (np.zeros((5, 6, 7), np.uint8), GOOD, ShapeError, r"\(5, 6, 7\) has no axis for the channels"),
        (np.zeros((5, 6, 2), np.uint8), GOOD, ShapeError, r"\(5, 6, 2\)"),
        (np.zeros((2, 5, 6, 3), np.uint8), GOOD, ShapeError, r"\(2, 5, 6, 3\).*overlays\(\)"),
        (np.zeros(5, np.uint8), GOOD, ShapeError, r"\(5,\)"),
        (np.zeros((0, 6, 3), np.uint8), GOOD, ShapeError, r"\(1, 0, 6, 3\)"),
        (plain(RED), GOOD + 1.5, PictureError, "heatmap holds values from 1.5 to 1.5"),
        (plain(RED), GOOD + 1.01, PictureError, "heatmap holds values from 1.01"),
        (plain(RED), GOOD - 0.01, PictureError, "heatmap holds values from -0.01"),
        (plain(RED), GOOD * np.nan, PictureError, "heatmap holds NaN"),
        (plain(RED), GOOD.astype(int), InputError, "heatmap cannot be int64"),
        (plain(RED), np.zeros((2, 4, 4)), ShapeError, r"heatmap has shape \(2, 4, 4\).*overlays\(\)"),
        (plain(RED), np.zeros((0, 4)), ShapeError, r"\(1, 0, 4\)"),
        (Image.new("I", (2, 2), 70_000), GOOD, PictureError, "from 70000 to 70000"),
    ],
)
def test_errors_say_what_is_wrong(picture, heatmap, error, message):
    with pytest.raises(error, match=message) as caught:
        overlay(picture, heatmap)
    assert isinstance(caught.value, GradCamKitError)


def test_values_that_are_no_picture_are_type_errors():
    with pytest.raises(TypeError):
        overlay([[1, 2], [3, 4]], GOOD)


def test_rounding_noise_outside_of_the_range_is_accepted():
    picture = np.array([[[-1e-7, 0.5, 1 + 1e-6]]])
    assert_same(overlay(picture, np.array([[1 + 1e-6]]), alpha=0), np.uint8([[[0, 128, 255]]]))
    assert_same(overlay(picture, np.array([[1 + 1e-6]]), alpha=1), np.uint8([[(128, 0, 0)]]))
    half_a_level = np.float32(255.5 / 255)
    assert_same(overlay(np.full((1, 1), half_a_level), np.array([[half_a_level]]), alpha=0), np.uint8([[WHITE]]))


def test_unknown_colormap_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no colormap 'virdis'; did you mean 'viridis'"):
        overlay(plain(RED), GOOD, colormap="virdis")
    with pytest.raises(UnknownNameError, match="did you mean 'jet'"):
        colormap_table("JET")
    with pytest.raises(UnknownNameError, match="known are autumn, bone"):
        colorize(GOOD, "zzz")


def test_batch_errors_name_both_numbers():
    with pytest.raises(ShapeError, match="2 pictures and 3 heatmaps"):
        overlays(torch.zeros(2, 3, 8, 6), torch.zeros(3, 2, 2))
    with pytest.raises(ShapeError, match=r"\(2, 5, 2, 2\)"):
        overlays(torch.zeros(2, 3, 8, 6), torch.zeros(2, 5, 2, 2))
