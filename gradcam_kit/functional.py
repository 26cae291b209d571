"""The arithmetic that all methods share: pure functions on batches, on any device, without host synchronization.

Maps are `(n, *s)` with 1, 2 or 3 position axes; callers that have several targets fold them into `n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

Fusion = Literal["mean", "max", "product", "sum"]
Normalization = Literal["minmax", "max", "none"]
HeadFusion = Literal["mean", "max", "min"]

# Differences below this share of a map's largest magnitude are rounding noise of float32 sums, not structure.
_FLAT = 1e-6
_FROM_PINNED = frozenset({"cuda"})
"""Types of devices to which pinned memory is copied asynchronously."""
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def spatial_mean(maps: Float[Tensor, "n k *s"]) -> Float[Tensor, "n k *one"]:
    """Average over the positions, which are kept with size 1."""
    return maps.mean(dim=tuple(range(2, maps.ndim)), keepdim=True)


def spatial_sum(maps: Float[Tensor, "n k *s"]) -> Float[Tensor, "n k *one"]:
    """Sum over the positions, which are kept with size 1."""
    return maps.sum(dim=tuple(range(2, maps.ndim)), keepdim=True)


def weighted_sum(activations: Float[Tensor, "n k *s"], weights: Float[Tensor, "n k *w"]) -> Float[Tensor, "n *s"]:
    """Multiply the channels of the activations by weights, and sum over the channels.

    Args:
        activations: output of the target layer.
        weights: one per channel (position axes of size 1) or one per channel and position. With one per
            channel, the sum is a matrix product, without a weighted copy of the activations.
    """
    if all(size == 1 for size in weights.shape[2:]):
        # Ten times as fast as the equivalent einsum.
        summed = torch.bmm(weights.flatten(1)[:, None], activations.flatten(2))
        return summed.view(len(summed), *activations.shape[2:])
    return (weights * activations).sum(dim=1)


def normalize(maps: Float[Tensor, "n *s"], method: Normalization = "minmax") -> Float[Tensor, "n *s"]:
    """Scale each map to [0, 1].

    Args:
        maps: the maps, which must be non-negative for "max".
        method: "minmax" scales the range of each map to [0, 1], and turns a constant map into zeros. "max" divides by
            the largest value, so that zero remains zero and a constant positive map becomes ones. "none" returns the
            maps unchanged.
    """
    if method == "none" or maps.numel() == 0:
        return maps
    axes = tuple(range(1, maps.ndim))
    highest = maps.amax(dim=axes, keepdim=True)
    if method == "max":
        return maps / highest.where(highest > 0, 1)
    lowest = maps.amin(dim=axes, keepdim=True)
    span = highest - lowest
    varies = span > _FLAT * torch.maximum(highest.abs(), lowest.abs())
    return (maps - lowest).div_(span.where(varies, torch.inf))


def upsample(maps: Float[Tensor, "n *s"], size: Sequence[int]) -> Float[Tensor, "n *t"]:
    """Resize the positions to `size` by linear interpolation in 1, 2 or 3 dimensions (`align_corners=False`)."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    if maps.shape[0] == 0:
        return maps.new_zeros((0, *size))
    return interpolate(maps[:, None], size=tuple(size), mode=_MODES[len(size)], align_corners=False)[:, 0]


def fuse(maps: Sequence[Float[Tensor, "n *t"]], method: Fusion = "mean") -> Float[Tensor, "n *t"]:
    """Combine the maps of several layers, position by position.

    Args:
        maps: maps in [0, 1]; for "sum", signed maps, so that evidence for and against a class cancels out.
        method: "mean", "max", "product" or "sum".
    """
    if len(maps) == 1:
        return maps[0]
    if method == "sum":
        return reduce(torch.add, maps)
    if method == "mean":
        return reduce(torch.add, maps) / len(maps)
    return reduce(torch.maximum if method == "max" else torch.mul, maps)


def gaussian_blur(images: Float[Tensor, "n c *t"], kernel: int, sigma: float) -> Float[Tensor, "n c *t"]:
    """Blur along every position axis, with images padded by reflection that does not repeat the edge cells.

    The reflection is repeated if the kernel is larger than the image.

    Args:
        images: images with any number of position axes.
        kernel: size of the window in cells, an odd number.
        sigma: width of the Gaussian, in cells.
    """
    for axis in range(2, images.ndim):
        matrix = move(_blur_matrix(images.shape[axis], kernel, sigma), images.device, images.dtype)
        images = (images.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
    return images.contiguous()


def _blur_matrix(length: int, kernel: int, sigma: float) -> Float[Tensor, "length length"]:
    """Return the weight of every cell (column) in every blurred cell (row)."""
    offsets = torch.arange(kernel) - kernel // 2
    weights = (-(offsets.double() ** 2) / (2 * sigma**2)).softmax(0)
    period = max(2 * (length - 1), 1)
    source = (torch.arange(length)[:, None] + offsets) % period
    source = torch.minimum(source, period - source)
    return weights.new_zeros(length, length).scatter_add(1, source, weights.expand(length, -1))


def move(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Move a detached tensor to a device, asynchronously unless the device is the host.

    On the way from the host to CUDA, the tensor is cast and pinned first: CUDA copies asynchronously only from pinned
    memory and without a change of dtype.
    """
    if device.type == "cpu":
        return tensor.to(device, dtype)
    if device.type in _FROM_PINNED and tensor.device.type == "cpu":
        # `pin_memory` keeps strides, but cannot write to the shared memory of an expanded tensor: make it contiguous.
        tensor = tensor.to(dtype).contiguous().pin_memory()
    return tensor.to(device, dtype, non_blocking=True)


def finite_probe(tensor: Float[Tensor, "n *s"]) -> Float[Tensor, " n"]:
    """Return the sum of each sample, which is non-finite if any value is; it may also overflow.

    The values are read once and not copied.
    """
    return tensor.sum(dim=tuple(range(1, tensor.ndim)), dtype=torch.promote_types(tensor.dtype, torch.float32))


_ROUNDING = 16  # in units in the last place; more than the rounding errors of sums and blurs of equal values


def without_rounding(differences: Float[Tensor, "*any"], values: Float[Tensor, "*other"]) -> Float[Tensor, "*any"]:
    """Set differences that are rounding errors of `values` to 0, so that normalization cannot stretch them into a map.

    Args:
        differences: differences of two tensors that may be equal up to rounding.
        values: one of these tensors; it broadcasts against the differences.
    """
    least = _ROUNDING * torch.finfo(differences.dtype).eps * values.abs()
    return differences.where(differences.abs() > least, 0)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert to float32, the lowest precision used for arithmetic; keep wider types."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rollout_step(
    attention: Float[Tensor, "n heads t t"], heads: HeadFusion = "mean", discard: float = 0.0
) -> Float[Tensor, "n t t"]:
    r"""Return one block's $\hat A$: the heads' attention plus the residual branch, with rows that sum to 1.

    Args:
        attention: softmax over the keys.
        heads: how the heads are fused.
        discard: share of the fused entries of each sample, the smallest ones, that are set to zero before the residual
            branch is added. The paper on rollout (Abnar & Zuidema 2020) does not have this option. Ties are resolved by
            position.
    """
    fused = attention.mean(1) if heads == "mean" else getattr(attention, f"a{heads}")(dim=1)
    flat = fused.flatten(1)
    smallest = flat.argsort(dim=1, stable=True)[:, : int(discard * flat.shape[1])]
    residual = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
    mixed = flat.scatter(1, smallest, 0).view_as(fused) + residual
    return mixed / mixed.sum(dim=-1, keepdim=True)
