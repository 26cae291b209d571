"""Read the layout of a layer's output from the places of its values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradcam_kit.capture.layouts import ChannelsFirst, ChannelsLast, Layout, Tokens
from gradcam_kit.capture.provenance.places import FOREIGN, Places, origin

_SAME = 1e-3
"""Distance in pixels up to which two places count as the same place."""
_WHOLE = 0.6
"""A token that gathers from at least this share of the positions along every axis counts as gathering from everywhere.
The share is above 1/2, because in a row of two patches each patch covers half of the positions.
"""


def read_layout(
    shape: Sequence[int],
    ids: Tensor | None,
    places: Places,
    positions: Sequence[int],
    channels: int | None,
    unknown: Sequence[str] = (),
) -> Layout | str:
    """Return the layout of an output for one image.

    Args:
        shape: shape of the output.
        ids: row numbers in `places` of the output's values; None if the output does not depend on any input.
        places: table of the places in one image.
        positions: indices in `places` of the image axes that heatmaps have.
        channels: index in `places` of the channel axis; None if the images have no such axis.
        unknown: names of the operations after which the origin of values is unknown.

    Returns:
        The layout, or the reason why there is none.
    """
    ids = origin(len(shape)) if ids is None else ids
    low, _, flags = places.rows(ids)
    placed = low[..., 0].isfinite()
    if not bool(placed.any()):
        if bool(flags[..., 1].any()):
            return _lost(unknown)
        return (
            "it depends on other inputs, not on the images" if bool(flags.any()) else "it does not depend on the images"
        )
    if shape[0] != 1:
        return f"its first axis has {shape[0]} entries for one image, so it is not the axis of samples"
    if len(shape) == len(positions) + 2:
        for layout, first in ((ChannelsFirst(), 2), (ChannelsLast(), 1)):
            if _are_axes(shape, ids, places, positions, range(first, first + len(positions))):
                return layout
    if len(shape) == 3:
        found = _token_grid(shape[1], ids, places, positions, channels)
        if isinstance(found, str) and isinstance(_token_grid(shape[2], ids.mT, places, positions, channels), Tokens):
            found = "its positions are on the last axis, after the channels"
    else:
        found = "its axes are not those of the images"
    return _lost(unknown) if isinstance(found, str) and bool(flags[..., 1].any()) else found


def _lost(unknown: Sequence[str]) -> str:
    named = ", ".join(dict.fromkeys(unknown))
    return f"the places of its values in the images are lost after {named or 'an unknown operation'}"


def _are_axes(shape: Sequence[int], ids: Tensor, places: Places, positions: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether each position axis of the images corresponds to one of these axes of the output."""
    others = [d for d in range(len(shape)) if d not in axes]
    low, high, flags = places.rows(places.hull(ids, others))
    if not bool(low.isfinite().all()) or bool(flags.any()):
        return False
    middles = (low + high) / 2
    for own, axis in zip(axes, positions, strict=True):
        middle = middles[..., axis]
        if shape[own] > 1 and (middle.shape[own] == 1 or not bool((middle.diff(dim=own) > _SAME).all())):
            return False
        if any(float((middle - middle.narrow(d, 0, 1)).abs().max()) > _SAME for d in axes if d != own):
            return False
    return True


def _token_grid(
    tokens: int, ids: Tensor, places: Places, positions: Sequence[int], channels: int | None
) -> Tokens | str:
    """Return the grid of the tokens on axis 1 and the numbers of tokens before and after it, or why there is none."""
    low, high, flags = (part[0, :, 0].expand(tokens, -1) for part in places.rows(places.hull(ids, [2])))
    kinds = places.hull(ids, [2])[0, :, 0].long().expand(tokens)
    placed = low.isfinite().all(1)
    whole_low, whole_high = low[placed].amin(0), high[placed].amax(0)
    axes = list(positions)
    everywhere = high - low >= _WHOLE * (whole_high - whole_low)
    at_a_place = placed & ~everywhere[:, axes].all(1)
    if not bool(at_a_place.any()):
        return f"each of its {tokens} tokens gathers from all of the image, as queries do, so none is a position"
    (where,) = at_a_place.nonzero(as_tuple=True)
    first, last = int(where[0]), int(where[-1]) + 1
    outside = torch.ones(tokens, dtype=torch.bool)
    outside[first:last] = False
    if bool((flags[outside, 0] > 0).any()) or bool((kinds == FOREIGN).any()):
        return f"only {len(where)} of its {tokens} tokens come from the images, the others from other inputs"
    middles = ((low + high) / 2)[first:last]
    if not bool(at_a_place[first:last].all()):
        return f"only {len(where)} of its {tokens} tokens are positions, and other tokens lie between them"
    if channels is not None and float((middles[:, channels] - middles[:1, channels]).abs().max()) > _SAME:
        return "its tokens come from single channels of the images"
    cells = [_ranks(middles[:, axis]) for axis in axes]
    grid = tuple(int(ranks.max()) + 1 for ranks in cells)
    order = torch.zeros(len(middles), dtype=torch.long)
    for ranks, size in zip(cells, grid, strict=True):
        order = order * size + ranks
    if torch.Size(grid).numel() != len(middles) or len(order.unique()) != len(middles):
        return (
            f"its {len(middles)} tokens do not lie on a single grid of positions; they may be anchors of several levels"
        )
    sequence = order.argsort()
    is_sorted = bool((sequence == torch.arange(len(sequence))).all())
    return Tokens(grid, first, tokens - last, None if is_sorted else tuple(sequence.tolist()))


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value among the distinct values."""
    ordered, index = values.sort()
    steps = torch.cat([torch.zeros(1), (ordered.diff() > _SAME).float()]).cumsum(0).long()
    return torch.empty_like(index).scatter(0, index, steps)
