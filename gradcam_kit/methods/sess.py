"""SESS: Tursun et al., ECCV 2022, https://arxiv.org/abs/2207.01769."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import at_least_float32, gaussian_blur, normalize, upsample, weighted_sum
from gradcam_kit.methods.arithmetic.perturbations import probe_targets
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import one_of, positive, positive_int
from gradcam_kit.types import Evidence, LayerCapture

Pool = Literal["mean", "max"]
Window = tuple[slice, ...]
_KERNEL, _SIGMA = 11, 5.0


def windows(size: Sequence[int], scales: int, growth: float) -> list[Window]:
    """Return windows with the aspect ratio of the image that cover the image at each scale.

    At scale i, the sides of a window are 1 / (1 + i * growth) of those of the image. The last window along each axis is
    shifted so that it lies inside the image. With the defaults, an image of 224 x 224 has 122 windows.
    """
    found: list[Window] = []
    for i in range(scales):
        axes = []
        for length in size:
            window = max(1, round(length / (1 + i * growth)))
            starts = [min(j * window, length - window) for j in range(ceil(length / window))]
            axes.append([slice(start, start + window) for start in starts])
        found.extend(product(*axes))
    return found


def paste_windows(
    maps: Float[Tensor, "windows n *s"], where: Sequence[Window], size: Sequence[int], pool: Pool = "mean"
) -> Float[Tensor, "n *t"]:
    """Resize each map to its window; at each position take the mean or maximum of the windows that cover it.

    Args:
        maps: the map of each window, without negative values.
        where: windows that together cover every position.
        size: size of the result.
        pool: "mean" or "max".
    """
    total = maps.new_zeros(maps.shape[1], *size)
    covering = total.new_zeros(tuple(size))
    for one, window in zip(maps, where, strict=True):
        covered = total[(slice(None), *window)]
        pasted = upsample(one, covered.shape[1:])
        if pool == "mean":
            covered += pasted
            covering[window] += 1
        else:
            torch.maximum(covered, pasted, out=covered)
    return total / covering if pool == "mean" else total


class SESS(BaseCAM, name="sess"):
    r"""Combine the Grad-CAM maps of many windows of the image, each enlarged to the size of the image.

    Use this method for small objects, or several objects of different sizes, which a single pass sees too coarsely. The
    map of a window, after ReLU and min-max normalization, is weighted by the probability of the class in the window,
    divided by the largest such probability over all windows. The result has the resolution of the image and is smoothed
    with a Gaussian kernel of 11 pixels along each axis, with $\sigma = 5$. For targets other than classes, the score
    clipped at 0 replaces the probability. The defaults are those of the released code. Its windows are square; the
    windows of this implementation have the aspect ratio of the image, which is what the model expects.

    Args:
        scales: number of window sizes; the defaults make 122 windows of an image of 224 x 224.
        growth: increase of the enlargement from scale to scale, above 0.
        pool: "mean" or "max" of the windows that cover a position.

    Example:
        >>> from gradcam_kit import SESS
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> SESS(load_demo_model(), "layer4", scales=2, growth=1.0)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.PROBE | Evidence.RESCORE
    cost = "F + windows (2 F + B)"

    scales: int = 12
    growth: float = 2 / 7
    pool: Pool = "mean"

    def check_options(self) -> None:
        """Raise an error for fewer than one scale, windows that do not shrink, or an unknown pooling."""
        self.scales, self.growth = positive_int("scales", self.scales), positive("growth", self.growth)
        one_of("pool", self.pool, get_args(Pool))

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *mt"]:
        """Return the maps of all targets from the same windows, as many windows per pass as `batch_size` allows."""
        images, size = at_least_float32(layer.images), layer.images.shape[2:]
        where = windows(size, self.scales, self.growth)
        together = max(1, self.batch_size // len(images))
        parts = [
            self._scan(layer, [_enlarge(images, window) for window in where[first : first + together]])
            for first in range(0, len(where), together)
        ]
        maps, shares = (torch.cat(part) for part in zip(*parts, strict=True))
        leading = shares.shape[1:]
        highest = shares.amax(0)
        shares = shares / highest.where(highest > 0, 1)
        maps = normalize(maps.clamp(min=0)).unflatten(0, shares.shape)
        maps = (maps * shares.view(*shares.shape, *(1 for _ in size))).flatten(1, len(leading))
        pasted = paste_windows(maps, where, size, self.pool)
        saliency: Tensor = gaussian_blur(pasted[:, None], _KERNEL, _SIGMA)[:, 0].unflatten(0, leading)
        return saliency

    def _scan(
        self, layer: LayerCapture, copies: list[Float[Tensor, "n c *t"]]
    ) -> tuple[Float[Tensor, "r *s"], Float[Tensor, "copies n *m"]]:
        """Return the Grad-CAM maps of all copies, samples and targets along one axis, and the probabilities."""
        activations, gradients = probe_targets(layer, copies)
        maps = [weighted_sum(activations.flatten(0, 1), grad_cam_weights(own.flatten(0, 1))) for own in gradients]
        index = torch.arange(activations.shape[1], device=activations.device).repeat(len(copies))
        shares = layer.rescore_probability(torch.cat(copies), index).clamp(min=0)
        return torch.stack(maps, 1).flatten(0, 1), shares.unflatten(0, activations.shape[:2])


def _enlarge(images: Float[Tensor, "n c *t"], window: Window) -> Float[Tensor, "n c *t"]:
    """Resize the part of the images in a window to the size of the images."""
    crop = images[(slice(None), slice(None), *window)]
    enlarged: Tensor = upsample(crop.flatten(0, 1), images.shape[2:]).unflatten(0, crop.shape[:2])
    return enlarged
