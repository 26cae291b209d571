"""Boxes on overlays: where their lines are, and which boxes are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gradcam_kit.errors import InputError, OptionError, ShapeError
from gradcam_kit.render import overlay, overlays

GRAY = np.full((30, 40, 3), 100, np.uint8)
COLD = np.zeros((3, 4))


def test_the_line_runs_along_the_edge_of_the_box() -> None:
    plain, marked = overlay(GRAY, COLD), overlay(GRAY, COLD, outlines=[10, 5, 30, 25])
    white = (marked == 255).all(2)
    expected = np.zeros((30, 40), bool)
    expected[5:25, 10:30] = True
    expected[6:24, 11:29] = False
    assert np.array_equal(white, expected)
    black = (marked == 0).all(2)
    assert black[4, 10:30].all()
    assert black[6, 11:29].all()
    untouched = np.ones((30, 40), bool)
    untouched[3:27, 8:32] = False
    untouched[8:22, 13:27] = True
    assert np.array_equal(marked[untouched], plain[untouched])


def test_every_picture_has_its_own_boxes_and_what_lies_outside_is_cut_off() -> None:
    pictures, maps = np.stack([GRAY] * 3), np.zeros((3, 3, 4))
    found = overlays(pictures, maps, outlines=[None, torch.tensor([[10.0, 5, 30, 25], [-5, -5, 90, 90]]), [1, 1, 9, 9]])
    assert np.array_equal(found[0], overlay(GRAY, COLD))
    assert np.array_equal(found[1], overlay(GRAY, COLD, outlines=[[10, 5, 30, 25], [-5, -5, 90, 90]]))
    assert np.array_equal(found[1], overlay(GRAY, COLD, outlines=[10, 5, 30, 25]))
    assert np.array_equal(found[2], overlay(GRAY, COLD, outlines=[1, 1, 9, 9]))
    assert GRAY.min() == GRAY.max() == 100


@pytest.mark.parametrize(
    ("outlines", "error", "message"),
    [
        ([1, 2, 3], ShapeError, r"outlines have shape \(3,\); expected \(4,\), or \(b, 4\)"),
        ([5, 5, 5, 9], OptionError, r"an outline is .*; expected \(x0, y0, x1, y1\) with x0 < x1"),
        ([0.1, 0.1, 0.5, 0.9], OptionError, "expected pixels of a picture of 40 x 30, not fractions"),
        (np.array(["box"]), InputError, "outlines is a ndarray"),
    ],
)
def test_refused_boxes(outlines: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        overlays(GRAY[None], COLD[None], outlines=[outlines])


def test_another_number_of_entries() -> None:
    with pytest.raises(ShapeError, match="outlines has length 2; expected 1"):
        overlays(GRAY[None], COLD[None], outlines=[None, None])
