"""Principal components of maps: batched, on the device, from the smaller of the two Gram matrices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDING = 16


def first_component(maps: Float[Tensor, "n k *s"], center: bool = False) -> Float[Tensor, "n *s"]:
    r"""Project the positions on the first principal component of the channels: $A v_1 = \sqrt{\lambda_1} u_1$.

    Rows are positions, columns are channels. The eigenproblem is that of the smaller Gram matrix, positions or
    channels, with the same result; memory is the square of the smaller of the two.

    Args:
        maps: what to decompose.
        center: subtract each channel's mean over the positions first.

    Returns:
        Signed maps with the sign of `fix_sign`; all zero where `maps` is.
    """
    rows = maps.flatten(2).mT
    if center:
        mean = rows.mean(dim=1, keepdim=True)
        # What a constant channel leaves is rounding, which must not be blown up into a map.
        centered = rows - mean
        rows = centered.where(centered.abs() > _ROUNDING * torch.finfo(rows.dtype).eps * mean.abs(), 0)
    # The scale is taken out so that the squares in the Gram matrix neither overflow nor vanish.
    scale = rows.abs().amax(dim=(1, 2), keepdim=True)
    rows = rows / scale.where(scale > 0, 1)
    if rows.shape[1] <= rows.shape[2]:
        direction = rows.mT @ torch.linalg.eigh(rows @ rows.mT).eigenvectors[..., -1:]
        length = direction.norm(dim=1, keepdim=True)
        # By the rows themselves, so that equal positions get equal values whatever the solver's rounding.
        component = (rows @ (direction / length.where(length > 0, 1)))[..., 0]
    else:
        component = (rows @ torch.linalg.eigh(rows.mT @ rows).eigenvectors[..., -1:])[..., 0]
    projected: Tensor = (fix_sign(component) * scale[:, 0]).unflatten(1, maps.shape[2:])
    return projected


def fix_sign(component: Float[Tensor, "n z"]) -> Float[Tensor, "n z"]:
    """Flip each row whose entry of largest absolute value is negative: solvers return either sign."""
    largest = component.gather(1, component.abs().argmax(dim=1, keepdim=True))
    return component.where(largest >= 0, -component)
