"""Principal components of maps: batched, on the device, from the smaller of the two Gram matrices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import without_rounding

_LARGEST = 512
_SQUARINGS = 44


def principal(symmetric: Float[Tensor, "n z z"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n z"]]:
    """Return the largest eigenvalue of each matrix and its eigenvector of length 1.

    The eigenvector of a matrix of zeros may be zero. The host uses LAPACK. A GPU would solve the matrices one by one
    and synchronize for each, so small matrices are squared repeatedly there.
    """
    if symmetric.device.type == "cpu" or symmetric.shape[-1] > _LARGEST:
        values, vectors = torch.linalg.eigh(symmetric)
        return values[..., -1], vectors[..., -1]
    return by_squaring(symmetric)


def by_squaring(symmetric: Float[Tensor, "n z z"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n z"]]:
    r"""Solve `principal` by repeated squaring: all columns of $A^{2^{44}}$ are parallel to the eigenvector.

    Eigenvalues with a relative difference of $10^{-10}$ are separated. Rounding errors do not add up, because each
    squaring also squares the ratios of the other eigenvalues to the largest: in float64 the error of the vector is
    about $10^{-15}$ divided by the relative difference of the eigenvalues. For equal eigenvalues the choice of the
    vector is arbitrary, as with any solver.
    """
    wide = symmetric if symmetric.device.type == "mps" else symmetric.double()  # Apple's GPUs do not support float64
    # A negative eigenvalue may have the largest magnitude, so a lower bound is subtracted to make all nonnegative.
    lowest = wide.abs().sum(2).amax(1)
    power = wide + torch.diag_embed(lowest[:, None].expand(wide.shape[:2]))
    for _ in range(_SQUARINGS):
        trace = power.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        power = power / trace.where(trace > 0, 1)
        power = power @ power
    longest = power.diagonal(dim1=1, dim2=2).argmax(1).view(-1, 1, 1)
    vectors = power.gather(2, longest.expand(-1, power.shape[1], 1))
    length = vectors.norm(dim=1, keepdim=True)
    vectors = vectors / length.where(length > 0, 1)
    values = (vectors.mT @ wide @ vectors)[:, 0, 0]
    return values.to(symmetric.dtype), vectors[..., 0].to(symmetric.dtype)


def first_component(maps: Float[Tensor, "n k *s"], center: bool = False) -> Float[Tensor, "n *s"]:
    r"""Project the positions onto the first principal component of the channels: $A v_1 = \sqrt{\lambda_1} u_1$.

    The rows of $A$ are positions, and its columns are channels. The eigenproblem is that of the smaller Gram matrix, of
    positions or of channels, with the same result; memory grows with the square of the smaller number.

    Args:
        maps: the maps to decompose.
        center: whether to subtract each channel's mean over the positions first.

    Returns:
        Signed maps with the sign of `fix_sign`; all zeros for a sample whose `maps` are all zeros.
    """
    rows = maps.flatten(2).mT
    if center:
        rows = centered_rows(rows)
    # Normalize the scale so that the squares in the Gram matrix neither overflow nor underflow.
    scale = rows.abs().amax(dim=(1, 2), keepdim=True)
    rows = rows / scale.where(scale > 0, 1)
    if rows.shape[1] <= rows.shape[2]:
        direction = rows.mT @ principal(rows @ rows.mT)[1][..., None]
        length = direction.norm(dim=1, keepdim=True)
        # Project the rows themselves, so that equal positions get equal values in spite of the solver's rounding.
        component = (rows @ (direction / length.where(length > 0, 1)))[..., 0]
    else:
        component = (rows @ principal(rows.mT @ rows)[1][..., None])[..., 0]
    projected: Tensor = (fix_sign(component) * scale[:, 0]).unflatten(1, maps.shape[2:])
    return projected


def centered_rows(rows: Float[Tensor, "n z k"]) -> Float[Tensor, "n z k"]:
    """Subtract each channel's mean over the positions. A constant channel becomes exactly zero."""
    mean = rows.mean(dim=1, keepdim=True)
    return without_rounding(rows - mean, mean)


def fix_sign(component: Float[Tensor, "n z"]) -> Float[Tensor, "n z"]:
    """Flip each row whose entry of largest absolute value is negative: solvers return either sign."""
    largest = component.gather(1, component.abs().argmax(dim=1, keepdim=True))
    return component.where(largest >= 0, -component)
