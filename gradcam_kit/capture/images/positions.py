"""Which axes of a layer's maps are axes of the images, where `reshape` adds or drops some."""

from __future__ import annotations

from collections.abc import Sequence

from gradcam_kit.capture.layouts import fits


def heatmap_size(positions: Sequence[int], image: Sequence[int]) -> tuple[int, ...]:
    """Return the size of the heatmaps: the layer's own axes, resized where the image has the same axes.

    Args:
        positions: of the maps that `reshape` made.
        image: the shape `(c, *t)` of one image, its channels in front whatever the model takes.

    Returns:
        The size of the image where both have as many axes. Else axes are the same from the last one on, if two or
        more of them have one stride (any length fits a single axis) or the axis before them are the image's channels.
    """
    channels, *size = image
    axes, shared = len(size), min(len(positions), len(size))
    if len(positions) == axes:
        return tuple(size)
    per_channel = len(positions) == axes + 1 and positions[0] == channels > 1
    if (shared > 1 or per_channel) and fits(positions[-shared:], size[-shared:]):
        return (*positions[:-shared], *size[-shared:])
    return tuple(positions)
