"""SESS: Tursun et al., ECCV 2022, https://arxiv.org/abs/2207.01769."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import gaussian_blur, normalize, upsample, weighted_sum, widen
from gradcam_kit.methods.arithmetic.perturbations import probe_targets
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import Evidence, LayerCapture

Pool = Literal["mean", "max"]
Window = tuple[slice, ...]
_KERNEL, _SIGMA = 11, 5.0


def windows(size: Sequence[int], scales: int, growth: float) -> list[Window]:
    """Windows in the shape of the image that tile it at each scale; the last of each axis is moved inside.

    At scale i the windows are 1 / (1 + i * growth) of the image; an image of 224 x 224 has 122 with the defaults.
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
    """Resize each map to its window and average ("mean") or maximize ("max") over the windows that cover a position.

    Args:
        maps: of each window, not negative.
        where: windows that together cover everything.
        size: of the result.
        pool: "mean" or "max".
    """
    total = maps.new_zeros(maps.shape[1], *size)
    covering = total.new_zeros(tuple(size))
    for one, window in zip(maps, where, strict=True):
        place = total[(slice(None), *window)]
        pasted = upsample(one, place.shape[1:])
        if pool == "mean":
            place += pasted
            covering[window] += 1
        else:
            torch.maximum(place, pasted, out=place)
    return total / covering if pool == "mean" else total


class SESS(BaseCAM, name="sess"):
    r"""Grad-CAM of many windows of the image, each enlarged to the size of the image, put together.

    A window's map (ReLU, min-max normalized) counts with the probability of the class in the window, as a share of the
    largest over all windows. The result has the resolution of the image and is smoothed by a Gaussian of 11 cells with
    $\sigma = 5$. Other scores than those of classes count from 0. Defaults are those of the released code; its windows
    are square, here they have the shape of the image, which is what the model takes.

    Args:
        scales: how many sizes of windows.
        growth: how much the enlargement grows from scale to scale.
        pool: "mean" or "max" of the windows that cover a position.
    """

    needs = Evidence.PROBE | Evidence.RESCORE
    cost = "F + windows (2 F + B)"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        scales: int = 12,
        growth: float = 2 / 7,
        pool: Pool = "mean",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        positive_int("scales", scales)
        if not growth > 0:
            raise OptionError(f"growth is {growth!r}; expected a positive number")
        self.scales, self.growth = scales, growth
        self.pool: Pool = one_of("pool", pool, get_args(Pool))

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *mt"]:
        """All targets from the same windows, as many in one pass as fit into `batch_size`."""
        images, size = widen(layer.images), layer.images.shape[2:]
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
        """Grad-CAM of each copy, sample and target, all in one axis, and the probabilities."""
        activations, gradients = probe_targets(layer, copies)
        maps = [weighted_sum(activations.flatten(0, 1), grad_cam_weights(own.flatten(0, 1))) for own in gradients]
        index = torch.arange(activations.shape[1], device=activations.device).repeat(len(copies))
        shares = layer.rescore_probability(torch.cat(copies), index).clamp(min=0)
        return torch.stack(maps, 1).flatten(0, 1), shares.unflatten(0, activations.shape[:2])


def _enlarge(images: Float[Tensor, "n c *t"], window: Window) -> Float[Tensor, "n c *t"]:
    crop = images[(slice(None), slice(None), *window)]
    enlarged: Tensor = upsample(crop.flatten(0, 1), images.shape[2:]).unflatten(0, crop.shape[:2])
    return enlarged
