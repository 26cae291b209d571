"""Place heatmaps in pictures: boxes in whole pixels, and their parts inside the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, SupportsFloat

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from gradcam_kit.errors import InputError, OptionError, ShapeError, kind_of

Boxes = Sequence[SupportsFloat] | Sequence[Sequence[SupportsFloat]] | Shaped[np.ndarray, "..."] | Tensor
"""One box `(x0, y0, x1, y1)` in a picture's pixels, or several."""


class Place(NamedTuple):
    """The place of a heatmap in a picture.

    Attributes:
        size: height and width of the whole box, to which the heatmap is resized.
        inside: rows and columns of the box that are inside the picture, counted from the corner of the box.
        picture: rows and columns of the picture that the box covers.
    """

    size: tuple[int, int]
    inside: tuple[slice, slice]
    picture: tuple[slice, slice]


def places(boxes: Boxes, n: int, size: tuple[int, int]) -> list[tuple[Place, list[int]]]:
    """Return the places of heatmaps, with the indices of the pictures that share each place.

    Args:
        boxes: `(4,)` or `(n, 4)`; rounded to whole pixels, with a width and height of at least 1.
        n: number of pictures.
        size: height and width of the pictures.

    Raises:
        InputError, ShapeError: the boxes are not numbers, or not four numbers for all pictures or for each.
        OptionError: a box has no area, lies entirely outside the picture, or is in fractions instead of pixels.
    """
    try:
        read = np.asarray(boxes.cpu() if isinstance(boxes, Tensor) else boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"box is {kind_of(boxes)}; expected (x0, y0, x1, y1) in the picture's pixels") from error
    if read.shape not in ((4,), (n, 4)):
        raise ShapeError(f"boxes have shape {read.shape}; expected (4,) for all pictures, or ({n}, 4), one for each")
    found: dict[tuple[int, ...], list[int]] = {}
    for index, box in enumerate(np.broadcast_to(read, (n, 4)).tolist()):
        if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
            raise OptionError(f"box is {tuple(box)}; expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        if max(box) <= 1 < min(size):
            raise OptionError(
                f"box is {tuple(box)}; expected pixels of a picture of {size[1]} x {size[0]}, not fractions"
            )
        x0, y0, x1, y1 = map(round, box)
        found.setdefault((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), []).append(index)
    return [(_place(whole, size), which) for whole, which in found.items()]


def _place(box: tuple[int, ...], size: tuple[int, int]) -> Place:
    x0, y0, x1, y1 = box
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, size[1]), min(y1, size[0])
    if left >= right or top >= bottom:
        raise OptionError(f"box {box} lies outside a picture of {size[1]} x {size[0]} pixels")
    return Place(
        (y1 - y0, x1 - x0),
        (slice(top - y0, bottom - y0), slice(left - x0, right - x0)),
        (slice(top, bottom), slice(left, right)),
    )
