"""Whose random numbers a metric draws: the identities that a caller gives, or the images' own values."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.draws import checksums
from gradcam_kit.functional import move
from gradcam_kit.metrics.checks import check_numbers


def identities_of(identities: Int[Tensor, " n"] | None, images: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
    """The identities on the device of the images; where none are given, the images themselves say who they are.

    Raises:
        InputError: identities that are no integer tensor.
        ShapeError: not one for each image.
    """
    if identities is None:
        return checksums(images)
    check_numbers("identities", identities, len(images))
    return move(identities, images.device)
