"""Slow transcriptions of what follows `saliency`: ReLU, normalization, linear upsampling, fusion of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


def float64(values: Any) -> Array:
    """A float64 copy of a tensor, array or nested list."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.array(values, dtype=np.float64)


def positions(channels_first: Array) -> list[tuple[int, ...]]:
    """All index tuples of the position axes of `(k, *s)`."""
    return list(np.ndindex(*channels_first.shape[1:]))


def weighted_sum(weights: Any, activations: Any) -> Array:
    """`Σ_k w_k A_k`, one weight per channel."""
    weights, activations = float64(weights), float64(activations)
    saliency = np.zeros(activations.shape[1:])
    for s in positions(activations):
        for k in range(len(activations)):
            saliency[s] += weights[k] * activations[(k, *s)]
    return saliency


def relu(values: Any) -> Array:
    """`max(v, 0)` at every position."""
    values = float64(values)
    return np.where(values > 0, values, 0.0)


def normalize_minmax(values: Any) -> Array:
    """`(M − min M) / (max M − min M)`; a constant map has no contrast and becomes zeros."""
    values = float64(values)
    if values.max() == values.min():
        return np.zeros_like(values)
    return (values - values.min()) / (values.max() - values.min())


def normalize_max(values: Any) -> Array:
    """`M / max M`; without a positive value zeros. A constant positive map becomes ones."""
    values = float64(values)
    return values / values.max() if values.max() > 0 else np.zeros_like(values)


def normalize(values: Any, how: str) -> Array:
    """One of the three normalizations: "minmax", "max", "none"."""
    return {"minmax": normalize_minmax, "max": normalize_max, "none": float64}[how](values)


def resize_axis(values: Any, axis: int, size: int) -> Array:
    """Linear interpolation along one axis with `align_corners=False`.

    The center of output cell i lies at `(i + ½) · old / new − ½` in input cells, not below the first center; beyond
    the last center its value is repeated.
    """
    old = np.moveaxis(float64(values), axis, 0)
    new = np.zeros((size, *old.shape[1:]))
    for i in range(size):
        source = max((i + 0.5) * len(old) / size - 0.5, 0.0)
        left = min(int(source), len(old) - 1)
        right = min(left + 1, len(old) - 1)
        new[i] = old[left] + (source - left) * (old[right] - old[left])
    return np.moveaxis(new, 0, axis)


def upsample(values: Any, size: Sequence[int]) -> Array:
    """Linear, bilinear or trilinear resizing of `(*s)` to `size`, one axis after the other."""
    values = float64(values)
    if values.ndim != len(size):
        raise ValueError(f"a map with {values.ndim} axes cannot be resized to {tuple(size)}")
    for axis, length in enumerate(size):
        values = resize_axis(values, axis, length)
    return values


def fuse(maps: Sequence[Any], fusion: str) -> Array:
    """Mean, maximum or product of maps of one size, position by position."""
    stacked = [float64(one) for one in maps]
    fused = np.zeros_like(stacked[0])
    for s in np.ndindex(*fused.shape):
        values = [one[s] for one in stacked]
        if fusion == "mean":
            fused[s] = sum(values) / len(values)
        elif fusion == "max":
            fused[s] = max(values)
        elif fusion == "product":
            fused[s] = np.prod(values)
        else:
            raise ValueError(f"unknown fusion {fusion!r}")
    return fused


def heatmap(
    saliencies: Sequence[Any], size: Sequence[int], normalization: str = "minmax", fusion: str = "mean"
) -> Array:
    """ReLU, normalize, upsample, fuse the layers, normalize: one map in [0, 1], unless "none"."""
    if fusion == "sum" and len(saliencies) > 1:  # of the signed maps
        return normalize(relu(sum(upsample(saliency, size) for saliency in saliencies)), normalization)
    maps = [upsample(normalize(relu(saliency), normalization), size) for saliency in saliencies]
    return normalize(maps[0] if len(maps) == 1 else fuse(maps, fusion), normalization)


def layer_cam_heatmap(
    saliencies: Sequence[Any],
    size: Sequence[int],
    shallow: Sequence[bool],
    gamma: float = 2.0,
    normalization: str = "minmax",
    fusion: str = "max",
) -> Array:
    """Layer-CAM over several layers, Jiang et al., TIP 2021, Eq. 9: `tanh(gamma · M / max M)` of the shallow maps.

    Unconfirmed: which layers are shallow (given here), and that the tanh is taken before upsampling.
    """
    maps = []
    for saliency, is_shallow in zip(saliencies, shallow, strict=True):
        normalized = normalize(relu(saliency), normalization)
        if is_shallow and normalized.max() > 0:
            normalized = np.tanh(gamma * normalized / normalized.max())
        maps.append(upsample(normalized, size))
    return normalize(fuse(maps, fusion), normalization)
