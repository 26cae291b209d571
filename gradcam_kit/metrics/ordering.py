"""The positions of a map in their order: a stable descending sort, of equal values the first one first."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.metrics.checks import broken, constant


def places(maps: Float[Tensor, "n *t"]) -> Int[Tensor, "n *t"]:
    """The place of every position in the order of its map: 0 for the most relevant one."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    counting = torch.arange(order.shape[1], device=maps.device, dtype=torch.int32).expand(order.shape)
    found = torch.empty_like(order, dtype=torch.int32).scatter_(1, order, counting)
    return found.reshape(maps.shape)


def split_ties(maps: Float[Tensor, "n *t"], counts: Int[Tensor, " cuts"]) -> Int[Tensor, " n"]:
    """How many cuts behind the first `counts` positions fall between equal values, where the order is arbitrary."""
    ordered = maps.flatten(1).sort(dim=1, descending=True, stable=True).values
    inner = counts[(counts > 0) & (counts < ordered.shape[1])]
    return (ordered[:, inner - 1] == ordered[:, inner]).sum(1)


def unordered(maps: Float[Tensor, "n *t"]) -> Bool[Tensor, " n"]:
    """Maps whose positions have no order: constant, or not finite."""
    return broken(maps) | constant(maps)
