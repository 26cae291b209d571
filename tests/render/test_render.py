"""Colors and overlays: uint8 RGB, in numbers that can be checked by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pixels import BLACK, RED, WHITE, assert_same, noise, plain

from gradcam_kit.errors import (
    OptionError,
)
from gradcam_kit.render import COLORMAPS, colorize, colormap_table, overlay

JET_COLDEST, JET_HOTTEST = (0, 0, 128), (128, 0, 0)

# Numbers that can be checked by hand.


def test_overlay_is_the_weighted_mean_of_picture_and_colors():
    gray, hottest = plain((100, 100, 100)), np.ones((6, 9))
    assert_same(overlay(gray, hottest, alpha=0.25), plain((107, 75, 75)))  # 0.75 * 100 + 0.25 * (128, 0, 0)
    assert_same(overlay(gray, hottest), plain((114, 50, 50)))


def test_jet_runs_from_blue_to_red_and_turbo_viridis_have_their_published_ends():
    assert tuple(colormap_table("jet")[0]) == JET_COLDEST
    assert tuple(colormap_table("jet")[255]) == JET_HOTTEST
    assert tuple(colormap_table("viridis")[0]) == (68, 1, 84)
    assert np.abs(colormap_table("viridis")[255].astype(int) - (253, 231, 36)).max() <= 1


@pytest.mark.parametrize("name", COLORMAPS)
def test_every_colormap_is_the_one_of_opencv_in_rgb(name):
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8), getattr(cv2, f"COLORMAP_{name.upper()}")).reshape(256, 3)
    assert_same(colormap_table(name), bgr[:, ::-1])
    assert_same(overlay(plain(RED), np.full((6, 9), 0.6), colormap=name, alpha=1), plain(tuple(bgr[153, ::-1])))


def test_colormaps_are_named_in_lower_case_and_cannot_be_changed():
    assert {"jet", "viridis", "turbo", "inferno", "magma", "twilight_shifted"} <= set(COLORMAPS)
    assert all(name == name.lower() for name in COLORMAPS)
    with pytest.raises(ValueError, match="read-only"):
        colormap_table("jet")[0] = 1


def test_colorize_takes_the_nearest_of_256_colors():
    heatmap = np.array([[0.0, 1.4 / 255, 1.6 / 255, 1.0]])
    assert_same(colorize(heatmap, "viridis"), colormap_table("viridis")[[[0, 1, 2, 255]]])
    assert_same(colorize(heatmap[None]), colorize(heatmap)[None])


def test_heatmap_is_resized_linearly_between_pixel_centers():
    # Twice as wide: outer pixels repeat the ends, inner ones are 1/4 and 3/4 of the way.
    expected = colormap_table("jet")[[0, 50, 150, 200]]
    result = overlay(plain(BLACK, 1, 4), np.array([[0, 200 / 255]]), alpha=1)
    assert_same(result, expected[None])
    smaller = overlay(plain(BLACK, 1, 2), np.array([[0, 10, 20, 30]]) / 255, alpha=1)
    assert_same(smaller, colormap_table("jet")[[5, 25]][None])


def test_heatmap_of_another_size_is_the_resized_heatmap():
    picture, heatmap = noise(60, 45, 3), torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    resized = torch.nn.functional.interpolate(heatmap[None, None], (60, 45), mode="bilinear", align_corners=False)[0, 0]
    assert_same(overlay(picture, heatmap), overlay(picture, resized))
    assert_same(overlay(picture, heatmap, alpha=1), colorize(resized))


# Pitfalls of rendering.


def test_pitfall_78_uint8_map_of_255_is_hottest():
    assert_same(overlay(plain(WHITE), np.full((6, 9), 255, np.uint8), alpha=1), plain(JET_HOTTEST))
    assert_same(overlay(plain(WHITE), np.zeros((6, 9), np.uint8), alpha=1), plain(JET_COLDEST))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, torch.float32, torch.float64])
def test_pitfall_78_uint8_and_float_maps_give_the_same_overlay(dtype):
    picture, levels = noise(64, 48, 3), np.arange(256, dtype=np.uint8).reshape(8, 32)
    floats = torch.from_numpy(levels) / 255 if isinstance(dtype, torch.dtype) else levels / dtype(255)
    floats = floats.to(dtype) if isinstance(dtype, torch.dtype) else floats.astype(dtype)
    assert_same(overlay(picture, floats), overlay(picture, levels))
    assert_same(overlay(picture, torch.from_numpy(levels)), overlay(picture, levels))


@pytest.mark.parametrize("level", [10, 100, 200])
def test_pitfall_79_brightness_is_never_rescaled(level):
    picture, heatmap = plain((level, level, level)), np.zeros((6, 9))
    assert_same(overlay(picture, heatmap), plain((level // 2, level // 2, level // 2 + 64)))


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
def test_pitfall_79_a_pixel_depends_on_nothing_but_itself(alpha):
    picture, heatmap = noise(20, 30, 3), np.random.default_rng(0).random((20, 30))
    corner = overlay(picture[:5, :5], heatmap[:5, :5], alpha=alpha)
    assert_same(overlay(picture, heatmap, alpha=alpha)[:5, :5], corner)


def test_pitfall_79_ends_of_alpha_are_the_picture_and_the_colors():
    picture, heatmap = noise(20, 30, 3), np.random.default_rng(0).random((20, 30))
    assert_same(overlay(picture, heatmap, alpha=0.0), picture)
    assert_same(overlay(picture, heatmap, alpha=1.0), colorize(heatmap))


def test_pitfall_80_red_stays_red():
    assert_same(overlay(plain(RED), np.zeros((6, 9)), alpha=0), plain(RED))
    assert_same(overlay(plain(RED), np.zeros((6, 9)), alpha=0.5), plain((128, 0, 64)))
    assert_same(overlay(Image.new("RGB", (9, 6), RED), np.zeros((6, 9)), alpha=0), plain(RED))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pictures_and_maps_equal_their_float32_values(dtype):
    picture, heatmap = torch.rand(3, 12, 10).to(dtype), torch.rand(4, 5).to(dtype)
    assert_same(overlay(picture, heatmap), overlay(picture.float(), heatmap.float()))
    assert_same(overlay(noise(8, 8, 3), np.float16([[0, 0.5]])), overlay(noise(8, 8, 3), np.array([[0, 0.5]])))


def test_pitfall_81_alpha_may_be_any_number_from_0_to_1():
    picture, heatmap = noise(5, 5, 3), np.ones((5, 5))
    assert_same(overlay(picture, heatmap, alpha=0), overlay(picture, heatmap, alpha=0.0))
    assert_same(overlay(picture, heatmap, alpha=1), overlay(picture, heatmap, alpha=1.0))
    assert_same(overlay(picture, heatmap, alpha=np.float32(0.5)), overlay(picture, heatmap, alpha=0.5))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, 50, float("nan")])
def test_alpha_out_of_range_is_named(alpha):
    with pytest.raises(OptionError, match=f"alpha is {alpha}.*from 0"):
        overlay(plain(RED), np.zeros((2, 2)), alpha=alpha)


def test_pitfall_83_levels_are_rounded_after_the_resize_and_not_before():
    # 0 and 1.6 levels: rounded first, the middle would be (0 + 2) * 3/4 = 1.5 -> 2; resized first it is 1.2 -> 1.
    heatmap = np.array([[0, 1.6 / 255]])
    assert_same(overlay(plain(BLACK, 1, 4), heatmap, alpha=1), colormap_table("jet")[[0, 0, 1, 2]][None])


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1 / 3, 0.5, 0.9999])
def test_every_level_on_every_color_is_blended_exactly(alpha):
    # In float64 nothing but the result is rounded, to even where it is halfway.
    levels = np.arange(256, dtype=np.uint8)
    picture, heatmap = levels[:, None, None].repeat(256, 1).repeat(3, 2), levels[None].repeat(256, 0)
    share = round(alpha * 2**15) / 2**15
    exact = share * colormap_table("jet")[heatmap].astype(float) + (1 - share) * picture
    assert_same(overlay(picture, heatmap, alpha=alpha), exact.round().astype(np.uint8))
    assert_same(overlay(picture[:, :5], heatmap[:, :5], alpha=alpha), exact[:, :5].round().astype(np.uint8))


def test_large_pictures_are_painted_whole():
    picture, heatmap = noise(700, 300, 3), noise(700, 300, seed=1)  # several bands, the last one shorter
    table = colormap_table("jet")[heatmap]
    assert_same(colorize(heatmap), table)
    assert_same(overlay(picture, heatmap), ((table.astype(float) + picture) / 2).round().astype(np.uint8))
    wide = overlay(noise(2, 2**16 + 1, 3), np.zeros((1, 1)), alpha=1)  # a row is more than a band
    assert_same(wide, plain(JET_COLDEST, 2, 2**16 + 1))
