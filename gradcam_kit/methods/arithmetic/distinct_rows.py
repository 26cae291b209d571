"""Choose the rows that differ most from each other, as starting points of clustering and factorization."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.functional import move


def unit_rows(rows: Float[Tensor, "*n r z"]) -> Float[Tensor, "*n r z"]:
    """Scale each row to length 1 without overflow or underflow. Rows of zeros are left unchanged."""
    largest = rows.abs().amax(-1, keepdim=True)
    scaled = rows / largest.where(largest > 0, 1)
    length = scaled.norm(dim=-1, keepdim=True)
    unit: Tensor = scaled / length.where(length > 0, 1)
    return unit


def distinct_rows(rows: Float[Tensor, "n r z"], count: int, start: Float[Tensor, " z"]) -> Int[Tensor, "n count"]:
    """Choose rows that are far apart by cosine: each is the row least similar to the rows chosen before it.

    Args:
        rows: rows of length 1; rows of zeros have no direction and come last.
        count: number of rows to choose; if there are fewer, some are repeated.
        start: vector whose most similar row is chosen first. Callers draw it on the host, so that it is the same on
            every device.
    """
    has_direction = (rows != 0).any(2)
    nearness = -(rows @ move(start, rows.device, rows.dtype))
    chosen: list[Tensor] = []
    for _ in range(count):
        chosen.append(nearness.where(has_direction, torch.inf).argmin(1))
        own = rows.gather(1, chosen[-1].view(-1, 1, 1).expand(-1, 1, rows.shape[2]))
        similarity = (rows @ own.mT)[..., 0]
        nearness = similarity if len(chosen) == 1 else torch.maximum(nearness, similarity)
    return torch.stack(chosen, 1)
