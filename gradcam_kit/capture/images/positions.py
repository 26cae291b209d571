"""Which axes of a layer's maps are axes of the images, where `reshape` adds or drops some."""

from __future__ import annotations

from collections.abc import Sequence

from gradcam_kit.capture.layouts import fits

_COLORS = (1, 3)


def heatmap_size(positions: Sequence[int], image: Sequence[int]) -> tuple[int, ...]:
    """Return the size of the heatmaps: the layer's own axes, resized where the image has the same axes.

    Args:
        positions: of the maps that `reshape` made.
        image: the shape `(c, *t)` of one image. Of `(t, c, h, w)`, clips whose frames are processed one by one, the
            frames are read as c and the colors as the first position.

    Returns:
        The size of the image where both have as many axes. Else axes are the same from the last one on, if two or
        more of them have one stride (any length fits a single axis) or the axis before them are the image's channels.
    """
    channels, *size = image
    axes, shared = len(size), min(len(positions), len(size))
    if len(positions) == axes:
        if axes == 3 and _are_frames(positions[0], channels, size[0]):
            return (positions[0], *size[1:])
        return tuple(size)
    per_channel = len(positions) == axes + 1 and positions[0] == channels > 1
    if (shared > 1 or per_channel) and fits(positions[-shared:], size[-shared:]):
        return (*positions[:-shared], *size[-shared:])
    return tuple(positions)


def _are_frames(first: int, channels: int, length: int) -> bool:
    """Whether the first position axis of the maps runs over what is read as channels, the frames of a clip."""
    return (first == channels != length) or first > length or (length in _COLORS and channels not in _COLORS)
