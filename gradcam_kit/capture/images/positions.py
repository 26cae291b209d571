"""Match the axes of a layer's maps to those of the images, in case `reshape` adds or drops axes."""

from __future__ import annotations

from collections.abc import Sequence

from gradcam_kit.capture.layouts import fits


def heatmap_size(positions: Sequence[int], image: Sequence[int]) -> tuple[int, ...]:
    """Return the size of the heatmaps: the layer's own axes, resized along those that the image shares.

    Args:
        positions: the position axes of the maps that `reshape` returned.
        image: the shape `(c, *t)` of one image, always with the channels first.

    Returns:
        The size of the image if both have the same number of axes. Otherwise trailing axes are matched, if two or more
        of them have the same stride (any length fits a single axis) or the axis before them is that of the image's
        channels. If no axes match, the size is that of the maps.
    """
    channels, *size = image
    axes, shared = len(size), min(len(positions), len(size))
    if len(positions) == axes:
        return tuple(size)
    per_channel = len(positions) == axes + 1 and positions[0] == channels > 1
    if (shared > 1 or per_channel) and fits(positions[-shared:], size[-shared:]):
        return (*positions[:-shared], *size[-shared:])
    return tuple(positions)
