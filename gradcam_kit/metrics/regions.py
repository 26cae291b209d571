"""Regions of an image, a grid of cells or superpixels, and their order by a map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import ShapeError
from gradcam_kit.functional import move
from gradcam_kit.options import positive, positive_int

_COMPACTNESS = {True: 10.0, False: 0.1}
"""Compactness of SLIC for Lab colors, and for values in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Regions:
    """A partition of each image's positions into regions.

    Attributes:
        labels: the region of each position, from 0.
        counts: the number of regions of each image.
        most: an upper bound of `counts`.
    """

    labels: Int[Tensor, "n *t"]
    counts: Int[Tensor, " n"]
    most: int

    def means(self, maps: Float[Tensor, "n *t"]) -> Float[Tensor, "n most"]:
        """Return the mean of the map in each region, in float64, and minus infinity where there is no such region."""
        labels, values = self.labels.flatten(1), maps.flatten(1).double()
        sums = values.new_zeros(len(labels), self.most).scatter_add(1, labels, values)
        sizes = torch.zeros_like(sums).scatter_add(1, labels, torch.ones_like(values))
        return (sums / sizes).masked_fill(sizes == 0, -math.inf)

    def places(self, values: Float[Tensor, "n most"]) -> Int[Tensor, "n *t"]:
        """Return the rank of the region of every position, 0 for the largest value, by a stable sort."""
        order = values.sort(dim=1, descending=True, stable=True).indices
        counting = torch.arange(self.most, device=values.device).expand(order.shape)
        place = torch.empty_like(order).scatter_(1, order, counting)
        return place.gather(1, self.labels.flatten(1)).reshape(self.labels.shape)

    def ties(self, values: Float[Tensor, "n most"], steps: int) -> Int[Tensor, " n"]:
        """Count the cuts after the first 1, 2, ... `steps` regions that fall between equal values."""
        ordered = values.sort(dim=1, descending=True).values
        same = (ordered[:, 1:] == ordered[:, :-1]) & ordered[:, 1:].isfinite()
        return same[:, :steps].sum(1)


def grid_regions(images: Float[Tensor, "n c *t"], side: int) -> Regions:
    """Return cells of `side` positions along every axis from the first corner. Cells at the end may be smaller."""
    positive_int("patch", side)
    size = tuple(images.shape[2:])
    labels = torch.zeros((), dtype=torch.long, device=images.device)
    for length in size:
        cells = math.ceil(length / side)
        labels = labels[..., None] * cells + torch.arange(length, device=images.device) // side
    most = math.prod(math.ceil(length / side) for length in size)
    counts = torch.full((len(images),), most, device=images.device)
    return Regions(labels.expand(len(images), *size), counts, most)


def superpixels(images: Float[Tensor, "n c *t"], segments: int, compactness: float | None = None) -> Regions:
    """Compute the superpixels of each image with SLIC (Achanta et al., TPAMI 2012), on the host, one image at a time.

    Each image is first scaled to [0, 1] by its own smallest and largest value. Two-dimensional images with three
    channels are compared in the Lab color space.

    Args:
        images: the model's input, with two or three position axes.
        segments: number of superpixels that SLIC aims at.
        compactness: weight of positions against colors; None = 10 for two-dimensional images with three channels, else
            0.1.

    Raises:
        ShapeError: images without two or three position axes.
    """
    from skimage.segmentation import slic

    if images.ndim not in (4, 5):
        raise ShapeError(f"superpixels need images (n, c, h, w) or (n, c, d, h, w); got {tuple(images.shape)}")
    positive_int("segments", segments)
    is_color = images.ndim == 4 and images.shape[1] == 3
    own = _COMPACTNESS[is_color] if compactness is None else positive("compactness", compactness)
    pixels = np.nan_to_num(images.detach().movedim(1, -1).cpu().double().numpy())
    labels = np.zeros(pixels.shape[:-1], dtype=np.int64)
    for place, image in enumerate(pixels):
        span = image.max() - image.min()
        scaled = (image - image.min()) / (span or 1.0)
        labels[place] = _consecutive(
            slic(
                scaled,
                n_segments=segments,
                compactness=own,
                convert2lab=is_color,
                channel_axis=-1,
                start_label=0,
            )
        )
    counts = labels.max(tuple(range(1, labels.ndim)), initial=0) + 1
    there = [move(torch.from_numpy(one), images.device) for one in (labels, counts.astype(np.int64))]
    return Regions(there[0], there[1], int(counts.max(initial=1)))


def _consecutive(labels: Int[np.ndarray, "*t"]) -> Int[np.ndarray, "*t"]:
    """Renumber the regions from 0 without gaps."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
