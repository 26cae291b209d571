"""The order of a map's positions: a stable descending sort, in which the first of equal values comes first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.functional import move
from gradcam_kit.similarity import broken, constant


@dataclass(frozen=True, eq=False)
class Order:
    """The positions of maps in descending order of their values, from one sort.

    Attributes:
        place: rank of every position, 0 for the most relevant.
        values: values of the maps, descending.
    """

    place: Int[Tensor, "n *t"]
    values: Float[Tensor, "n p"]

    @classmethod
    def of(cls, maps: Float[Tensor, "n *t"]) -> Order:
        """Sort the positions of maps, which must not contain NaN."""
        values, order = maps.flatten(1).sort(dim=1, descending=True, stable=True)
        counting = torch.arange(order.shape[1], device=maps.device, dtype=torch.int32).expand(order.shape)
        place = torch.empty_like(order, dtype=torch.int32).scatter_(1, order, counting)
        return cls(place.reshape(maps.shape), values)

    def split_ties(self, counts: Iterable[int]) -> Int[Tensor, " n"]:
        """Return how many cuts after the first `counts` positions fall between equal values and so are arbitrary."""
        inner = torch.tensor([count for count in counts if 0 < count < self.values.shape[1]], dtype=torch.long)
        inner = move(inner, self.values.device)
        return (self.values[:, inner - 1] == self.values[:, inner]).sum(1)


def unordered(maps: Float[Tensor, "n *t"]) -> Bool[Tensor, " n"]:
    """Return which maps do not order their positions: constant or non-finite maps."""
    return broken(maps) | constant(maps)
