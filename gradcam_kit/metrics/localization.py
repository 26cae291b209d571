"""Localization: compare maps with masks of the objects; `box_masks` turns boxes into masks.

Maps are ordered by a stable descending sort: among equal values the first in row-major order comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import move
from gradcam_kit.metrics.checks import check_boxes, check_masks, check_numbers, degenerate, usable
from gradcam_kit.metrics.ordering import Order, unordered
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.result import MetricResult, Status, measured
from gradcam_kit.options import non_negative, positive_int
from gradcam_kit.similarity import broken

_POINTING = "Pointing game: Zhang et al., IJCV 2018, https://arxiv.org/abs/1608.00507."
_NOTHING = 1e-7  # lower limit of a map's sum over a mosaic, as in the paper's code
_ARRAS = "Arras et al., Information Fusion 2022, https://arxiv.org/abs/2003.07258."


@metric("pointing-game", better="higher", paper=_POINTING)
@metric("pointing-game-15", better="higher", paper=_POINTING + " Tolerance of 15 pixels.", tolerance=15.0)
def pointing_game(
    heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"], *, tolerance: float = 0.0
) -> MetricResult:
    """Score 1 if the first maximum lies on the object or nearer than `tolerance` to it, else 0.

    The paper reports the mean of the classes' hit rates; see `PointingGame` in `gradcam_kit.metrics.accumulation`.

    Args:
        heatmaps: maps of any scale.
        masks: boolean masks of the objects.
        tolerance: distance in positions, exclusive: with 15, a maximum 14 positions from the object is a hit. 0 = on
            the object.
    """
    check_masks(masks, heatmaps)
    non_negative("tolerance", tolerance)
    maps = usable(heatmaps).flatten(1)
    peak = maps.argmax(1)  # the first of equal maxima
    hit = masks.flatten(1).gather(1, peak[:, None])[:, 0]
    if tolerance > 0:
        hit = hit | (_squared_distance(peak, masks) < tolerance**2)
    ties = (maps == maps.amax(1, keepdim=True)).sum(1) - 1
    values = hit.float().masked_fill(unordered(heatmaps) | empty(masks), torch.nan)
    return measured(
        values, localization_flags(heatmaps, masks), {"tolerance": tolerance}, {"ties": ties, "chance": chance(masks)}
    )


@metric(
    "energy-pointing-game",
    better="higher",
    paper="Energy-based pointing game: Wang et al., CVPRW 2020 (Score-CAM), https://arxiv.org/abs/1910.01279.",
)
@metric("mass-accuracy", better="higher", paper="Relevance mass accuracy: " + _ARRAS)
def mass_accuracy(heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"]) -> MetricResult:
    """Return the share of the total positive relevance on the object; for box masks, the energy-based pointing game.

    `details["chance"]`, the share of the image that the object covers, is the expected value for an uninformative map.
    """
    check_masks(masks, heatmaps)
    return _share(heatmaps, masks)


@metric("rank-accuracy", better="higher", paper="Relevance rank accuracy: " + _ARRAS)
def rank_accuracy(heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"]) -> MetricResult:
    """Return the share of the |m| most relevant positions that lie on the object, with |m| the size of the object."""
    check_masks(masks, heatmaps)
    return _top(heatmaps, masks, masks.flatten(1).sum(1), {})


@metric("top-k-intersection", better="higher", paper="Theiner et al. 2021, https://arxiv.org/abs/2104.14995.")
def top_k_intersection(
    heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"], *, k: int | None = None
) -> MetricResult:
    """Return the share of the k most relevant positions that lie on the object.

    For an object with fewer than k positions, the largest possible value is its number of positions divided by k.

    Args:
        heatmaps: maps of any scale; only the order of their values matters.
        masks: boolean masks of the objects.
        k: positions to count; None = 1000, as in the paper, or a tenth of all positions if there are fewer than 10,000.

    Raises:
        OptionError: a k above the number of positions, for which all maps score the same.
    """
    check_masks(masks, heatmaps)
    positions = math.prod(masks.shape[1:])
    settings: dict[str, object] = {"k": k or "1000, or a tenth of the positions for maps below 10000 positions"}
    k = positive_int("k", min(1000, max(1, positions // 10)) if k is None else k)
    if k > max(positions, 1):
        raise OptionError(f"k is {k}, but the maps have only {positions} positions; expected k from 1 to {positions}")
    return _top(heatmaps, masks, torch.full_like(masks.flatten(1).sum(1), k), settings)


@metric("iou", better="higher")
@metric("iou-otsu", better="higher", threshold="otsu")
def iou(
    heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"], *, threshold: float | Literal["otsu"] = 0.5
) -> MetricResult:
    """Return the overlap |Q and m| / |Q or m| of the object m with the region Q in which the map reaches the threshold.

    Args:
        heatmaps: maps of any scale.
        masks: boolean masks of the objects.
        threshold: a share of the map's maximum, in (0, 1], or "otsu" for Otsu's threshold of the map's histogram, which
            the map must exceed.
    """
    check_masks(masks, heatmaps)
    found, objects = _above(heatmaps, threshold), masks.flatten(1)
    values = (found & objects).sum(1) / (found | objects).sum(1)
    undefined = unordered(heatmaps) if threshold == "otsu" else broken(heatmaps)
    values = values.masked_fill(undefined | empty(masks), torch.nan)
    return measured(values, localization_flags(heatmaps, masks), {"threshold": threshold})


@metric(
    "weighted-ioa", better="higher", paper="Intersection over attention: M3d-Cam, https://arxiv.org/abs/2007.00453."
)
def weighted_ioa(
    heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"], *, threshold: float = 0.5
) -> MetricResult:
    """Return the share of the map that lies on the object, among the positions where the map reaches the threshold.

    Args:
        heatmaps: maps of any scale.
        masks: boolean masks of the objects.
        threshold: a share of the map's maximum, in (0, 1].
    """
    check_masks(masks, heatmaps)
    maps = usable(heatmaps).flatten(1).double()
    maps = maps.where(_above(heatmaps, threshold), 0)
    values = maps.where(masks.flatten(1), 0).sum(1) / maps.sum(1)
    values = values.masked_fill(broken(heatmaps) | empty(masks), torch.nan)
    return measured(values, localization_flags(heatmaps, masks), {"threshold": threshold})


def grid_pointing(maps: Float[Tensor, "n *t"], cells: Int[Tensor, " n"], grid: Sequence[int] = (2, 2)) -> MetricResult:
    """Return the share of the positive map that lies in the class's cell of a mosaic.

    For an uninformative map, the expected share is 1 / number of cells.

    Grid pointing game: Rao et al., CVPR 2022, https://arxiv.org/abs/2205.10435. Compare methods at the same layer only.

    Args:
        maps: heatmaps, or signed maps upsampled to the mosaic.
        cells: index of the cell, row by row from 0.
        grid: number of cells along each axis, which must divide the length of the axis.

    Raises:
        OptionError: a grid without cells, or the index of a cell that does not exist.
        ShapeError: a grid that does not divide the maps, or not one cell for each map.
    """
    size, counts = tuple(maps.shape[1:]), tuple(positive_int("a side of the grid", count) for count in grid)
    if len(counts) != len(size) or any(length % count for length, count in zip(size, counts, strict=True)):
        raise ShapeError(f"a grid of {counts} cells does not divide maps of {size}; expected a divisor of each side")
    number = torch.arange(math.prod(counts), device=maps.device).reshape(counts)
    check_numbers("cells", cells, len(maps), number.numel())
    for axis, (length, count) in enumerate(zip(size, counts, strict=True)):
        number = number.repeat_interleave(length // count, dim=axis)
    masks = number == move(cells, maps.device, torch.long).reshape(-1, *(1 for _ in size))
    return _share(maps, masks, {"grid": counts}, _NOTHING)


def box_masks(boxes: Float[Tensor, "n b 4"], size: Sequence[int]) -> Bool[Tensor, "n h w"]:
    """Return the union of each image's boxes (x0, y0, x1, y1), x1 and y1 exclusive. Empty boxes add nothing.

    Raises:
        InputError: boxes that are not a tensor.
        ShapeError: boxes that are not `(n, b, 4)`.
    """
    check_boxes(boxes)
    height, width = size
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    x0, y0, x1, y1 = boxes[..., None].unbind(2)
    across, down = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return (down[..., :, None] & across[..., None, :]).any(1)


def otsu_threshold(heatmaps: Float[Tensor, "n *t"], bins: int = 256) -> Float[Tensor, " n"]:
    """Return Otsu's threshold of each map: the center of the bin after which a split separates two classes best."""
    maps = usable(heatmaps).flatten(1).double()
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    span = (high - low).where(high > low, 1)
    place = ((maps - low) / span * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(maps), bins, dtype=torch.long, device=maps.device)
    counts.scatter_add_(1, place, torch.ones_like(place))
    # In units of bins, sums are integers and exact in any order; the best split is the same.
    number = torch.arange(bins, device=maps.device)
    weight, mass = counts.cumsum(1)[:, :-1].double(), (counts * number).cumsum(1).double()
    rest, total = counts.sum(1, keepdim=True) - weight, mass[:, -1:]
    between = weight * rest * (mass[:, :-1] / weight - (total - mass[:, :-1]) / rest) ** 2
    best = between.nan_to_num(-1.0).argmax(1, keepdim=True)
    return (low + (best + 0.5) / bins * span)[:, 0]


def chance(masks: Bool[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """Return the share of the image that the mask covers."""
    return masks.flatten(1).float().mean(1)


def empty(masks: Bool[Tensor, "n *t"]) -> Bool[Tensor, " n"]:
    """Return which masks are empty."""
    return ~masks.flatten(1).any(1)


def localization_flags(heatmaps: Float[Tensor, "n *t"], masks: Bool[Tensor, "n *t"]) -> dict[Status, Tensor]:
    """Return the flags of masks and maps by status. The flag of an empty mask takes precedence over that of its map."""
    return {Status.EMPTY_GT: empty(masks), **degenerate(heatmaps)}


def _above(heatmaps: Tensor, threshold: float | Literal["otsu"]) -> Bool[Tensor, "n p"]:
    """Return where the map reaches a share of its maximum, or strictly exceeds Otsu's threshold."""
    maps = usable(heatmaps).flatten(1)
    if threshold == "otsu":
        return maps > otsu_threshold(heatmaps)[:, None]
    if isinstance(threshold, str) or not 0 < threshold <= 1:
        raise OptionError(f"threshold is {threshold!r}; expected a share of the maximum in (0, 1], or 'otsu'")
    highest = maps.amax(1, keepdim=True)
    return (maps >= threshold * highest) & (highest > 0)


def _share(
    heatmaps: Tensor, masks: Tensor, settings: dict[str, object] | None = None, least: float = 0.0
) -> MetricResult:
    """Return the share of the total positive relevance on the object; undefined if the total is at most `least`."""
    maps = usable(heatmaps).flatten(1).clamp(min=0).double()
    nothing = maps.sum(1) <= least
    values = maps.where(masks.flatten(1), 0).sum(1) / maps.sum(1)
    values = values.masked_fill(broken(heatmaps) | empty(masks) | nothing, torch.nan)
    flags = localization_flags(heatmaps, masks)
    flags[Status.DEGENERATE_MAP] = flags[Status.DEGENERATE_MAP] | nothing
    return measured(values, flags, settings or {}, {"chance": chance(masks)})


def _top(heatmaps: Tensor, masks: Tensor, count: Int[Tensor, " n"], settings: dict[str, object]) -> MetricResult:
    """Return the share of the first `count` positions that lie on the object."""
    order = Order.of(usable(heatmaps))
    inside = (order.place.flatten(1) < count[:, None]) & masks.flatten(1)
    values = (inside.sum(1) / count).masked_fill(unordered(heatmaps) | empty(masks), torch.nan)
    positions = order.values.shape[1]
    last = order.values.gather(1, (count - 1).clamp(min=0)[:, None])
    after = order.values.gather(1, count.clamp(max=positions - 1)[:, None])
    ties = ((last == after)[:, 0] & (count < positions) & (count > 0)).long()
    return measured(values, localization_flags(heatmaps, masks), settings, {"ties": ties, "chance": chance(masks)})


def _squared_distance(peak: Int[Tensor, " n"], masks: Bool[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """Return the squared distance of one position per image to the object, or infinity if there is no object."""
    size = masks.shape[1:]
    square = torch.zeros(masks.shape, device=masks.device)
    stride = math.prod(size)
    for axis, length in enumerate(size, 1):
        stride //= length
        away = torch.arange(length, device=masks.device) - (peak // stride % length)[:, None]
        shape = (len(masks), *(length if other == axis else 1 for other in range(1, masks.ndim)))
        square = square + (away.float() ** 2).reshape(shape)
    return square.where(masks, torch.inf).flatten(1).amin(1)
