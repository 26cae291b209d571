"""Random masks of RISE: small random grids, enlarged, and shifted by less than a cell."""

from __future__ import annotations

from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.draws import uniform


def random_masks(
    numbers: Int[Tensor, " r"],
    identities: Int[Tensor, " r"],
    size: tuple[int, ...],
    cells: int,
    visible: float,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "r *t"]:
    """Return masks in [0, 1] that depend only on their number, their image and the seed, not on the rest of the batch.

    A grid has `cells` cells along each axis, which are 1 with probability `visible` and 0 otherwise. It is enlarged
    linearly to one cell more than the image, and cropped to the size of the image at a random position (RISE, Section
    3.2).

    Args:
        numbers: for each row, the number of the mask among those of its image.
        identities: for each row, the identity of its image; see `draws.checksums`.
        size: size of the masks, `*t`.
        cells: number of cells along each axis.
        visible: probability that a cell is 1.
        seed: seed of all draws.
        dtype: type of the masks.
    """
    axes = len(size)
    drawn = uniform((cells**axes + axes,), identities, seed, numbers)
    masks: Tensor = (drawn[:, :-axes] < visible).to(dtype).unflatten(1, (cells,) * axes)
    for axis, length in enumerate(size):
        cell = ceil(length / cells)
        shift = (drawn[:, axis - axes] * cell).long()[:, None]
        # Linear interpolation as a matrix product: the weight of each cell (column) at each position (row).
        at = (torch.arange(length, device=drawn.device) + shift + 0.5).to(dtype) * cells / ((cells + 1) * cell) - 0.5
        near = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=drawn.device)
        shares = (1 - near.abs()).clamp(min=0)
        moved = masks.movedim(1 + axis, -1)
        enlarged = moved.reshape(len(masks), -1, cells) @ shares.mT
        masks = enlarged.reshape(*moved.shape[:-1], length).movedim(-1, 1 + axis)
    return masks
