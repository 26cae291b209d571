"""Similarity of two maps of the same image: correlation of values and of ranks, and structural similarity.

All measures are batched and symmetric. They are NaN where a map is constant or not finite, and thus not comparable.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv1d

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import at_least_float32, finite_probe


def pearson(first: Float[Tensor, "n *t"], second: Float[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """Return the correlation of the values, in [-1, 1]."""
    check_pair(first, second)
    undefined = broken(first) | constant(first) | broken(second) | constant(second)
    a, b = _standardize(at_least_float32(first).flatten(1)), _standardize(at_least_float32(second).flatten(1))
    return (a * b).mean(1).clamp(-1, 1).masked_fill(undefined, torch.nan)


def spearman(first: Float[Tensor, "n *t"], second: Float[Tensor, "n *t"]) -> Float[Tensor, " n"]:
    """Return the rank correlation in [-1, 1]. Signs count, and equal values share their mean rank."""
    check_pair(first, second)
    undefined = broken(first) | broken(second)
    return pearson(ranks(first.flatten(1)), ranks(second.flatten(1))).masked_fill(undefined, torch.nan)


def ranks(values: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """Return ranks from 0, ascending; equal values share the mean of their ranks."""
    ordered, order = at_least_float32(values).sort(dim=1, stable=True)
    starts = torch.searchsorted(ordered, ordered, right=False)
    ends = torch.searchsorted(ordered, ordered, right=True)
    shared = (starts + ends - 1).double() / 2  # exact: float32 has no halves above 2^23
    return torch.empty_like(shared).scatter_(1, order, shared)


def ssim(
    first: Float[Tensor, "n *t"], second: Float[Tensor, "n *t"], *, window: int = 11, sigma: float = 1.5
) -> Float[Tensor, " n"]:
    """Return the structural similarity over all position axes (Wang et al. 2004), averaged over inner windows.

    The dynamic range of a pair is that of both maps together, so that a common scale does not matter.

    Args:
        first: maps of any scale.
        second: maps on the same scale.
        window: size of the Gaussian window along each axis, an odd number.
        sigma: width of the Gaussian, in positions.

    Raises:
        OptionError: the maps are smaller than the window, or the window is not an odd number.
    """
    check_pair(first, second)
    if window % 2 == 0 or min(first.shape[1:]) < window:
        raise OptionError(
            f"window is {window} for maps of {tuple(first.shape[1:])}; expected an odd window that fits into the maps"
        )
    undefined = broken(first) | constant(first) | broken(second) | constant(second)
    a, b = at_least_float32(first), at_least_float32(second)
    both = torch.stack([a, b], 1).flatten(1)
    lowest = both.amin(1).reshape(-1, *(1 for _ in a.shape[1:]))
    span = (both.amax(1).reshape(lowest.shape) - lowest).clamp(min=torch.finfo(a.dtype).tiny)
    c1, c2 = 0.01**2, 0.03**2
    # The means enter the formula, so normalize only the scale, not the origin.
    a, b = a / span, b / span
    mean_a, mean_b, aa, bb, ab = _windows(torch.stack([a, b, a * a, b * b, a * b], 1), window, sigma).unbind(1)
    variances = (aa - mean_a**2) + (bb - mean_b**2)
    covariance = ab - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variances + c2)
    )
    return similarity.flatten(1).mean(1).masked_fill(undefined, torch.nan)


def _windows(maps: Float[Tensor, "n k *t"], window: int, sigma: float) -> Float[Tensor, "n k *inside"]:
    """Return Gaussian means over all inner windows."""
    offsets = torch.arange(window, device=maps.device, dtype=maps.dtype) - window // 2
    kernel = (-(offsets**2) / (2 * sigma**2)).softmax(0)[None, None]
    for axis in range(2, maps.ndim):
        lines = maps.movedim(axis, -1)
        means = conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel)
        maps = means.reshape(*lines.shape[:-1], -1).movedim(-1, axis)
    return maps


def _standardize(values: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """Normalize to mean 0 and mean square 1 in float64, because float32 sums would make a correlation of 1 inexact."""
    values = values.double()
    centered = values - values.mean(1, keepdim=True)
    return centered / centered.square().mean(1, keepdim=True).sqrt()


def check_pair(first: Tensor, second: Tensor) -> None:
    """Raise ShapeError if two batches of maps differ in shape."""
    if first.shape != second.shape:
        raise ShapeError(f"the maps have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected the same")


def broken(maps: Float[Tensor, "n *t"]) -> Bool[Tensor, " n"]:
    """Return which maps have non-finite values."""
    return ~finite_probe(maps).isfinite()


def constant(maps: Float[Tensor, "n *t"]) -> Bool[Tensor, " n"]:
    """Return which maps are constant."""
    flat = maps.flatten(1)
    return flat.amax(1) == flat.amin(1)
