"""Compute places after operations with windows: convolutions, pooling, resizing, padding.

The place of a value is the center of its window, because a larger receptive field does not move a position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradcam_kit.capture.provenance.places import CONSTANT, Places, compressed


def resampled(
    places: Places, ids: Tensor, before: Sequence[int], after: Sequence[int], values: Mapping[str, Any] | None
) -> Tensor:
    """Return the row numbers after an operation with windows, placed by its arguments, or evenly if it has none."""
    axes = range(len(after) - max(len(after) - 2, 1), len(after))
    if all(after[d] == 1 for d in axes):
        return places.hull(ids, list(axes))
    centers = {}
    for k, d in enumerate(axes):
        index = torch.arange(after[d], dtype=torch.float32)
        kernel = _pick(values, "kernel_size", k, None)
        if kernel is None or (values or {}).get("transposed"):
            centers[d] = (index + 0.5) * before[d] / after[d] - 0.5
        else:
            stride = _pick(values, "stride", k, kernel)
            reach = _pick(values, "dilation", k, 1) * (kernel - 1) / 2
            centers[d] = index * stride - _pick(values, "padding", k, 0) + reach
    return places.resample(ids, centers)


def padded(places: Places, ids: Tensor, image: Tensor, pad: Sequence[int], output: Tensor) -> Tensor:
    """Return the row numbers of a tensor padded by `pad`, which begins with the last axis, as in torch."""
    sides = {image.ndim - 1 - k: pad[2 * k] for k in range(len(pad) // 2) if pad[2 * k] or pad[2 * k + 1]}
    if all(places.axes_along(ids, d) < 2 for d in sides):  # the places of maps are extrapolated
        index = {d: torch.arange(output.shape[d], dtype=torch.float32) - left for d, left in sides.items()}
        return places.resample(ids, index)
    return compressed(torch.constant_pad_nd(ids.expand(image.shape), pad, float(CONSTANT)))  # new tokens have no place


def folded(places: Places, ids: Tensor, values: Mapping[str, Any], output: Tensor) -> Tensor:
    """Return the row numbers of sums over overlapping windows (`nn.Fold`): hulls of the summands' places."""
    size = math.prod(values["kernel_size"])
    rest = (values["output_size"], values["kernel_size"], values["dilation"], values["padding"], values["stride"])
    batched = ids if ids.ndim == 3 else ids[None]
    # Fold one entry of each window at a time, so that row numbers are not added up.
    inside = torch.arange(batched.shape[1]) % size
    apart = [
        torch.ops.aten.col2im(batched * (inside == entry)[:, None], *rest).reshape(output.shape)
        for entry in range(size)
    ]
    return compressed(places.hull(torch.stack(apart), [0])[0])


def _pick(values: Any, key: str, place: int, default: Any) -> Any:
    given = (values or {}).get(key)
    if given is None or given == []:
        return default
    if isinstance(given, int):
        return given
    return given[place if len(given) > 1 else 0]
