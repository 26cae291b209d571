"""Does the map lie on the object? Maps against masks; a box is a mask, several boxes are their union (`box_masks`).

Maps are ordered by a stable descending sort: of equal values the first in row-major order comes first.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from gradcam_kit.metrics.case import metric
from gradcam_kit.metrics.checks import broken, check_masks, degenerate, usable
from gradcam_kit.metrics.measured import Measured, Status, measured

_NAN = float("nan")


@metric(
    "energy-pointing-game",
    better="higher",
    paper="Energy-based pointing game: Wang et al., CVPRW 2020 (Score-CAM), https://arxiv.org/abs/1910.01279.",
)
def energy_pointing_game(heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"]) -> Measured:
    """The share of the map that lies on the object: sum of L on the mask / sum of L.

    `details["chance"]`, the share of the image that the object covers, is what a map without knowledge reaches.
    """
    check_masks(masks, heatmaps)
    maps = usable(heatmaps).flatten(1).double()
    on_object = maps.where(masks.flatten(1), 0).sum(1)
    values = (on_object / maps.sum(1)).masked_fill(broken(heatmaps) | empty(masks), _NAN)
    return measured(values, _flags(heatmaps, masks), details={"chance": chance(masks)})


def chance(masks: Bool[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """The share of the image that the mask covers."""
    return masks.flatten(1).float().mean(1)


def empty(masks: Bool[Tensor, "n *t"]) -> Bool[Tensor, " n"]:
    """Masks without a position."""
    return ~masks.flatten(1).any(1)


def _flags(heatmaps: Tensor, masks: Tensor) -> dict[Status, Tensor]:
    return {Status.EMPTY_GT: empty(masks), **degenerate(heatmaps)}
