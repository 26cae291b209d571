"""Heatmaps at the part of a picture that the model saw."""

from __future__ import annotations

from inspect import unwrap

import numpy as np
import pytest
import torch
from pixels import BLACK, RED, WHITE, assert_same, noise, plain

from gradcam_kit.errors import InputError, OptionError, ShapeError
from gradcam_kit.pixels.placement import places
from gradcam_kit.render import colormap_table, overlay, overlays

JET_HOTTEST = (128, 0, 0)


def test_a_box_gets_the_heatmap_and_the_rest_is_dimmed():
    gray, hottest = plain((100, 100, 100), 6, 9), np.ones((2, 2))
    result = overlay(gray, hottest, box=(2, 1, 5, 4))
    expected = plain((60, 60, 60), 6, 9)
    expected[1:4, 2:5] = (114, 50, 50)
    assert_same(result, expected)
    assert_same(overlay(gray, hottest, box=(2.4, 0.6, 5.4, 3.5), alpha=0.5), expected)  # whole pixels
    assert_same(overlay(gray, hottest, box=(0, 0, 9, 6)), overlay(gray, hottest))


def test_a_heatmap_in_a_box_is_resized_to_the_box_and_not_to_the_picture():
    expected = plain(BLACK, 1, 8)
    expected[:, 2:6] = colormap_table("jet")[[0, 50, 150, 200]]
    assert_same(overlay(plain(BLACK, 1, 8), np.array([[0, 200 / 255]]), alpha=1, box=(2, 0, 6, 1)), expected)


def test_a_box_beyond_the_picture_is_cut_off():
    whole = overlay(plain(BLACK, 1, 4), np.array([[0, 200 / 255]]), alpha=1)
    assert_same(overlay(plain(BLACK, 1, 2), np.array([[0, 200 / 255]]), alpha=1, box=(-1, 0, 3, 1)), whole[:, 1:3])
    tall = overlay(plain(BLACK, 2, 1), np.array([[0], [200 / 255]]), alpha=1, box=(0, -2, 1, 2))
    assert_same(tall, colormap_table("jet")[[150, 200]][:, None])


def test_a_box_smaller_than_a_pixel_is_one_pixel():
    drawn = overlay(plain(WHITE, 3, 3), np.ones((2, 2)), box=(1.2, 1.2, 1.4, 1.3), alpha=1)
    assert tuple(drawn[1, 1]) == JET_HOTTEST
    assert (drawn == 153).all(2).sum() == 8


def test_each_picture_has_its_own_box_or_all_have_one():
    pictures, heatmaps = noise(4, 12, 10, 3), torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0))
    boxes = [(0, 0, 5, 5), (3, 2, 9, 8), (0, 0, 5, 5), (-2, -2, 12, 14)]
    for given in (boxes, np.array(boxes), torch.tensor(boxes)):
        for i, one in enumerate(overlays(pictures, heatmaps, boxes=given)):
            assert_same(one, overlay(pictures[i], heatmaps[i], box=boxes[i]))
    for i, one in enumerate(overlays(pictures, heatmaps, boxes=boxes[1], colormap="turbo", alpha=0.3)):
        assert_same(one, overlay(pictures[i], heatmaps[i], box=boxes[1], colormap="turbo", alpha=0.3))


@pytest.mark.parametrize(
    ("box", "error", "message"),
    [
        ((5, 5, 5, 9), OptionError, r"\(5\.0, 5\.0, 5\.0, 9\.0\).*x0 < x1"),
        ((5, 9, 7, 8), OptionError, "y0 < y1"),
        ((float("nan"), 0, 5, 5), OptionError, "nan"),
        ((9, 0, 12, 5), OptionError, "outside a picture of 9 x 6"),
        ((0, -8, 9, -1), OptionError, "outside"),
        ((1, 2, 3), ShapeError, r"\(3,\); expected \(4,\)"),
        (np.zeros((2, 4)), ShapeError, r"\(2, 4\).*\(1, 4\), one for each"),
    ],
)
def test_boxes_that_cannot_be_are_named(box, error, message):
    with pytest.raises(error, match=message):
        overlay(plain(RED), np.ones((2, 2)), box=box)


def test_a_box_that_is_no_numbers_is_named():
    with pytest.raises(InputError, match="box is a str"):
        unwrap(places)("left half", 1, (4, 4))


def test_shares_are_no_box() -> None:
    with pytest.raises(OptionError, match=r"expected pixels of a picture of 30 x 20, not fractions"):
        places((0, 0, 0.5, 1), 1, (20, 30))
