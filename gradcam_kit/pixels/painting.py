"""Color heatmaps and blend them with pictures: with OpenCV on the host, or in one batch on a device.

Both ways give the same bytes for heatmaps of the final size. Resized heatmaps may differ by rounding, because OpenCV
and PyTorch round the intermediate results of the interpolation differently. On the host, each picture is painted
separately, in bands of rows, so that its data stays in the CPU caches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gradcam_kit.functional import move, upsample
from gradcam_kit.pixels.opencv import cv2
from gradcam_kit.pixels.pictures import RGB, as_rgb, levels_of, packed
from gradcam_kit.pixels.placement import Place

Table = UInt8[np.ndarray, "256 3"]
"""The RGB colors of the levels 0 to 255."""

_BAND = 2**16  # number of pixels in a band
_SHARES = 2**15  # resolution of opacities: products with levels and their sums are exact in float32
_UNSEEN = 0.6  # brightness outside the model's view; 0.6 times a level is never halfway, so all devices round it alike


def exact_share(alpha: float) -> float:
    """Return the nearest opacity whose blends are exact, so that they are rounded alike on every device."""
    return round(alpha * _SHARES) / _SHARES


def colored(heatmaps: Tensor, table: Table) -> UInt8[np.ndarray, "*n h w 3"]:
    """Return the nearest of 256 colors for each value of heatmaps, which are uint8 or in [0, 1]."""
    levels = levels_of(heatmaps, "a heatmap")
    if levels.device.type != "cpu":
        return _looked_up(_there(table, levels), levels).cpu().numpy()
    colors = np.empty((*levels.shape, 3), np.uint8)
    if levels.numel():
        width = levels.shape[-1]
        _paint(levels.reshape(-1, width).numpy(), table, colors.reshape(-1, width, 3))
    return colors


def blended_on_host(
    pictures: Tensor, heatmaps: Tensor, places: list[tuple[Place, list[int]]], table: Table, share: float
) -> UInt8[np.ndarray, "n h w 3"]:
    """Return pictures with colored heatmaps blended into their boxes, and with the rest dimmed."""
    canvas = np.empty((*pictures.shape[:3], 3), np.uint8)
    for place, alike in places:
        for i in alike:
            levels = levels_of(heatmaps[i], "a heatmap").numpy()
            if levels.shape != place.size:
                levels = cv2.resize(levels, place.size[::-1], interpolation=cv2.INTER_LINEAR)
            rgb = packed(as_rgb(pictures[i : i + 1])[0])
            _paint(levels[place.inside], table, canvas[i][place.picture], rgb[place.picture], share)
            for unseen in _around(place):
                if rgb[unseen].size:
                    cv2.convertScaleAbs(rgb[unseen], canvas[i][unseen], _UNSEEN)
    return canvas


def _paint(
    levels: Float[np.ndarray, "h w"], table: Table, canvas: RGB, rgb: RGB | None = None, share: float = 1.0
) -> None:
    """Color levels into `canvas`, blended with the picture `rgb` if there is one."""
    step = max(1, _BAND // levels.shape[1])
    for top in range(0, len(levels), step):
        band = slice(top, top + step)
        rounded = cv2.convertScaleAbs(levels[band])
        if rgb is None:
            cv2.applyColorMap(rounded, table[:, None], canvas[band])
        else:
            cv2.addWeighted(cv2.applyColorMap(rounded, table[:, None]), share, rgb[band], 1 - share, 0, canvas[band])


def blended_on_device(
    pictures: Tensor, heatmaps: Tensor, places: list[tuple[Place, list[int]]], table: Table, share: float
) -> UInt8[np.ndarray, "n h w 3"]:
    """Blend whole batches on the device, and copy the finished bytes to the host once."""
    rgb, levels = as_rgb(pictures), levels_of(heatmaps, "a heatmap")
    colors = _there(table, rgb).float() * share
    canvas = torch.empty_like(rgb, memory_format=torch.contiguous_format)
    for place, alike in places:
        # Slices copy nothing, and need no list of indices on the device.
        for which in (slice(None),) if len(alike) == len(rgb) else (slice(i, i + 1) for i in alike):
            placed = upsample(levels[which], place.size)[:, place.inside[0], place.inside[1]]
            rows, columns = place.picture
            blend = _looked_up(colors, placed).add_(rgb[which, rows, columns].float().mul_(1 - share))
            canvas[which, rows, columns] = blend.round_().to(torch.uint8)
            for rows, columns in _around(place):
                canvas[which, rows, columns] = (rgb[which, rows, columns] * _UNSEEN).round_().to(torch.uint8)
    return canvas.cpu().numpy()


def _around(place: Place) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of the parts of a picture above, below, left and right of a heatmap."""
    rows, columns = place.picture
    everywhere = slice(None)
    yield slice(rows.start), everywhere
    yield slice(rows.stop, None), everywhere
    yield rows, slice(columns.start)
    yield rows, slice(columns.stop, None)


def _there(table: Table, like: Tensor) -> Tensor:
    return move(torch.tensor(table), like.device)


def _looked_up(table: Tensor, levels: Float[Tensor, "*s"]) -> Tensor:
    return table.index_select(0, levels.round().int().flatten()).view(*levels.shape, 3)
