"""Record which part of the images each value comes from, as one interval along each axis of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CONSTANT, FOREIGN, UNKNOWN = 0, 1, 2
"""Row numbers of values without a place: they depend on no input, only on other inputs, or on something unknown."""
_WIDER = 0.5
"""Places whose extent exceeds the smallest one by more than this share of an axis are left out of a hull."""


class Places:
    """A table of places. Each row has an interval along every axis of the images.

    The places of a tensor's values are a tensor of row numbers, with size 1 along axes where all numbers are equal.

    Args:
        sizes: sizes of the axes of the images after the batch axis.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self.axes = tuple(sizes), len(sizes)
        inf = float("inf")
        # columns: lower ends, upper ends (one per axis each), extent, and whether other inputs and unknown operations
        # contribute
        special = [(0.0, 0.0, inf), (1.0, 0.0, 2e6), (0.0, 1.0, 1e6)]
        self._rows = torch.tensor([[inf] * self.axes + [-inf] * self.axes + [w, f, u] for f, u, w in special])
        self._count = len(special)

    def image(self) -> Tensor:
        """Return the row numbers of one image, in which each value comes from its own position."""
        places = [torch.arange(size, dtype=torch.float32) for size in self.sizes]
        grid = torch.stack(torch.meshgrid(*places, indexing="ij"), -1).view(-1, self.axes)
        return self._add(torch.cat([grid, grid, torch.zeros(len(grid), 3)], 1)).view(1, *self.sizes)

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the lower and the upper ends of places `(..., axes)`, and the flags `(..., 2)`.

        The ends are infinite for values without a place. The flags tell whether other inputs and unknown operations
        contribute.
        """
        rows = self._rows[ids.long()]
        return rows[..., : self.axes], rows[..., self.axes : 2 * self.axes], rows[..., -2:]

    def axes_along(self, ids: Tensor, dim: int) -> int:
        """Return the number of image axes along which an axis of a tensor runs, several if positions are flattened."""
        low = self._rows[ids.long()][..., : self.axes]
        return int(((low - low.narrow(dim, 0, 1)).abs() > 1e-3).flatten(0, -2).any(0).sum())

    def hull(self, ids: Tensor, dims: Sequence[int]) -> Tensor:
        """Return the smallest places that enclose all places along some axes, which then have size 1.

        Places that are much wider than the narrowest one, such as those of pooled next to unpooled values, are ignored.
        """
        for d in dims:
            if ids.shape[d] > 1 and bool((ids == ids.narrow(d, 0, 1)).all()):
                ids = ids.narrow(d, 0, 1)
        over = [d for d in dims if ids.shape[d] > 1]
        if not over:
            return ids
        rows = self._rows[ids.long()]
        width = rows[..., 2 * self.axes, None]
        kept = width <= width.amin(over, keepdim=True) + _WIDER
        low = rows[..., : self.axes].where(kept, torch.inf).amin(over, keepdim=True)
        high = rows[..., self.axes : 2 * self.axes].where(kept, -torch.inf).amax(over, keepdim=True)
        return self._merged(low, high, rows[..., -2:].amax(over, keepdim=True))

    def narrower(self, first: Tensor, second: Tensor) -> Tensor:
        """Return, value by value, the place with the smaller extent, or the first place if both are equally wide."""
        if first.numel() == 1 and int(first) == CONSTANT:
            return second.expand(torch.broadcast_shapes(first.shape, second.shape))
        if second.numel() == 1 and int(second) == CONSTANT:
            return first.expand(torch.broadcast_shapes(first.shape, second.shape))
        width = self._rows[:, 2 * self.axes]
        return torch.where(width[first.long()] <= width[second.long()] + 1e-6, first, second)

    def resample(self, ids: Tensor, centers: Mapping[int, Tensor]) -> Tensor:
        """Return the places at fractional indices along some axes, interpolated, and extrapolated beyond the ends."""
        centers = {d: c for d, c in centers.items() if ids.shape[d] > 1}
        if not centers:
            return ids
        rows = self._rows[ids.long()]
        for d, c in centers.items():
            index = c.floor().long().clamp(0, ids.shape[d] - 2)
            share = (c - index).view(-1, *(1 for _ in range(rows.ndim - d - 1)))
            before, behind = rows.index_select(d, index), rows.index_select(d, index + 1)
            moved = before + share * (behind - before)
            moved[..., -2:] = torch.maximum(before, behind)[..., -2:]
            rows = moved.where(~moved.isnan(), before)
        return self._merged(rows[..., : self.axes], rows[..., self.axes : 2 * self.axes], rows[..., -2:])

    def _merged(self, low: Tensor, high: Tensor, flags: Tensor) -> Tensor:
        sizes = torch.tensor([float(max(size - 1, 1)) for size in self.sizes])
        width = ((high - low) / sizes).sum(-1, keepdim=True)
        placed = width.isfinite()[..., 0]
        new = self._add(torch.cat([low, high, width, flags], -1).flatten(0, -2)).view(placed.shape)
        special = torch.where(flags[..., 1] > 0, UNKNOWN, torch.where(flags[..., 0] > 0, FOREIGN, CONSTANT))
        return new.where(placed, special.to(new.dtype))

    def _add(self, rows: Tensor) -> Tensor:
        start, self._count = self._count, self._count + len(rows)
        if self._count > len(self._rows):
            grown = self._rows.new_empty(max(2 * len(self._rows), self._count), self._rows.shape[1])
            grown[:start] = self._rows[:start]
            self._rows = grown
        self._rows[start : self._count] = rows
        return torch.arange(start, self._count, dtype=torch.float64)


def compressed(ids: Tensor) -> Tensor:
    """Return the same row numbers with size 1 along axes where all numbers are equal."""
    for d, (size, stride) in enumerate(zip(ids.shape, ids.stride(), strict=True)):
        if size > 1 and (stride == 0 or bool((ids == ids.narrow(d, 0, 1)).all())):
            ids = ids.narrow(d, 0, 1)
    return ids


def lined_up(ids: Tensor, ndim: int) -> Tensor:
    """Return the row numbers with `ndim` axes, by adding leading axes of size 1 as broadcasting does."""
    return ids.reshape((1,) * (ndim - ids.ndim) + tuple(ids.shape))


def origin(ndim: int, kind: int = CONSTANT) -> Tensor:
    """Return the row number of values without a place, as a tensor with `ndim` axes of size 1."""
    return torch.full((1,) * ndim, float(kind), dtype=torch.float64)
