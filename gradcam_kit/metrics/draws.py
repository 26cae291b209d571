"""The identities from which random draws are derived: given by the caller, or the images' own values."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.draws import checksums, uniform
from gradcam_kit.functional import move
from gradcam_kit.metrics.checks import check_numbers


def identities_of(identities: Int[Tensor, " n"] | None, images: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
    """Return the identities on the device of the images; if none are given, derive them from the images.

    Raises:
        InputError: identities that are not an integer tensor.
        ShapeError: not one identity for each image.
    """
    if identities is None:
        return checksums(images)
    check_numbers("identities", identities, len(images))
    return move(identities, images.device)


def shaken(
    images: Float[Tensor, "n c *t"], own: Int[Tensor, " n"], radius: float, seed: int, stream: int
) -> Float[Tensor, "n c *t"]:
    """Return the images with every value moved by a draw from U(-radius, radius), in their own precision."""
    moved = radius * (2 * uniform(tuple(images.shape[1:]), own, seed, stream) - 1)
    return (images + moved).to(images.dtype)
