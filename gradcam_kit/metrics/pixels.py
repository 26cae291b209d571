"""Pixel average precision (PxAP): Choe et al., CVPR 2020, https://arxiv.org/abs/2001.07437."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradcam_kit.metrics.checks import check_heatmaps, check_masks, usable
from gradcam_kit.metrics.localization import chance, empty, localization_flags
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.options import positive_int
from gradcam_kit.similarity import broken

_PAPER = "Pixel average precision: Choe et al., CVPR 2020, https://arxiv.org/abs/2001.07437."


@metric("pixel-ap", better="higher", paper=_PAPER)
def pixel_average_precision(
    heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"], *, bins: int = 1000
) -> MetricResult:
    """Return the area under the precision-recall curve of each image's pixels.

    The paper pools the pixels of a data set: `PixelAveragePrecision` in `gradcam_kit.metrics.accumulation`.

    Args:
        heatmaps: maps in [0, 1].
        masks: boolean masks of the objects.
        bins: number of bins in [0, 1]; values in one bin are treated as equal.
    """
    check_masks(masks, heatmaps)
    values = average_precision(pixel_histograms(heatmaps, masks, bins=bins))
    values = values.masked_fill(broken(heatmaps) | empty(masks), torch.nan)
    return measured(values, localization_flags(heatmaps, masks), {"bins": bins}, {"chance": chance(masks)})


def pixel_histograms(
    heatmaps: Float[Tensor, "n *t"],
    masks: Bool[Tensor, "n *t"],
    ignored: Bool[Tensor, "n *t"] | None = None,
    *,
    bins: int = 1000,
) -> Float[Tensor, "n 2 bins"]:
    """Return histograms of the map on and off the object, which can be summed over a data set.

    Args:
        heatmaps: maps in [0, 1].
        masks: boolean masks of the objects.
        ignored: pixels that are excluded from both the object and the background.
        bins: number of bins in [0, 1].
    """
    check_masks(masks, heatmaps)
    check_heatmaps(heatmaps, heatmaps[:, None])
    if ignored is not None:
        check_masks(ignored, heatmaps, "ignored pixels")
    place = (usable(heatmaps).flatten(1) * positive_int("bins", bins)).long().clamp(max=bins - 1)
    objects = masks.flatten(1)
    counted = torch.ones_like(objects) if ignored is None else ~ignored.flatten(1)
    found = torch.zeros(len(heatmaps), 2, bins, dtype=torch.double, device=heatmaps.device)
    for side, chosen in enumerate((objects & counted, ~objects & counted)):
        found[:, side].scatter_add_(1, place, chosen.double())
    return found


def average_precision(histograms: Float[Tensor, "*n 2 bins"]) -> Float[Tensor, "*n"]:
    """Return the sum of precision times the rise of recall, from high to low thresholds; NaN without an object."""
    counts = histograms.long().flip(-1).cumsum(-1).double()  # sums of integers are exact in any order
    hits, others = counts.unbind(-2)
    recall = hits / hits[..., -1:]
    precision = hits / (hits + others).clamp(min=1)
    rise = recall.diff(dim=-1, prepend=torch.zeros_like(recall[..., :1]))
    return (precision * rise).sum(-1)
