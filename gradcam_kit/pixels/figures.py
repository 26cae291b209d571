"""Show pictures as matplotlib figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradcam_kit.errors import missing_extra
from gradcam_kit.pixels.pictures import RGB

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_of(picture: RGB, title: str) -> Figure:
    """Return a figure that shows a picture without axes, and leave the global backend unchanged.

    Args:
        picture: uint8 `(h, w, 3)`.
        title: shown above the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("plots need matplotlib", "notebook") from error
    height, width = picture.shape[:2]
    figure = Figure(figsize=(max(width / 100, 2), max(height / 100, 2)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.asarray(picture))
    axes.set_axis_off()
    axes.set_title(title)
    return figure
