"""Render boxes on pictures: a light line with a dark rim, visible on every background."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import InputError, OptionError, ShapeError, kind_of
from gradcam_kit.pixels.opencv import cv2
from gradcam_kit.pixels.pictures import RGB
from gradcam_kit.pixels.placement import Boxes

_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)
_SHARE = 200  # the longer side of the picture divided by the width of the line


def read_outlines(boxes: Boxes, size: tuple[int, int]) -> Float[np.ndarray, "b 4"]:
    """Read boxes `(x0, y0, x1, y1)` in the pixels of one picture, `(4,)` or `(b, 4)`, and return them as `(b, 4)`.

    Raises:
        InputError, ShapeError: the boxes are not numbers, or not four numbers each.
        OptionError: a box has no area, or coordinates relative to the picture instead of pixels.
    """
    try:
        read = np.asarray(boxes.detach().cpu() if isinstance(boxes, Tensor) else boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"outlines is {kind_of(boxes)}; expected boxes (x0, y0, x1, y1) in pixels") from error
    if read.ndim not in (1, 2) or read.shape[-1] != 4:
        raise ShapeError(f"outlines have shape {read.shape}; expected (4,), or (b, 4) for b boxes of a picture")
    read = read.reshape(-1, 4)
    for box in read.tolist():
        if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
            raise OptionError(f"an outline is {tuple(box)}; expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        if max(box) <= 1 < min(size):
            raise OptionError(
                f"an outline is {tuple(box)}; expected pixels of a picture of {size[1]} x {size[0]}, not fractions"
            )
    return read


def outline(canvas: RGB, boxes: Float[np.ndarray, "b 4"]) -> None:
    """Render boxes on a picture in place, and cut off parts outside the picture."""
    width = max(1, round(max(canvas.shape[:2]) / _SHARE))
    corners = [(round(x0), round(y0), round(x1) - 1, round(y1) - 1) for x0, y0, x1, y1 in boxes.tolist()]
    for color, wide in ((_DARK, width + 2), (_LIGHT, width)):
        for x0, y0, x1, y1 in corners:
            cv2.rectangle(canvas, (x0, y0), (x1, y1), color, wide)
