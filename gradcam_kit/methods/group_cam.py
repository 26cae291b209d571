"""Group-CAM: Zhang et al. 2021, https://arxiv.org/abs/2103.13859."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize as unit
from torch.nn.functional import one_hot

from gradcam_kit.capture.class_targets import check_count
from gradcam_kit.functional import gaussian_blur, normalize, upsample, widen
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.types import Evidence, LayerCapture

_KERNEL, _SIGMA = 51, 50.0  # of the released code
_ROUNDS = 10


def group_channels(activations: Float[Tensor, "n k *s"], groups: int, seed: int = 0) -> Int[Tensor, "n k"]:
    """Put channels with similar maps together: k-means of their correlation, whatever the order of the channels.

    The first center is the channel most like a seeded random map, each further one the channel least like the centers
    so far; then ten rounds of assigning channels and averaging groups. The random map is shared by the batch.

    Args:
        activations: maps to compare; constant ones have no structure and come into the first group.
        groups: at most; fewer where there are fewer channels.
        seed: of the random map.
    """
    flat = activations.flatten(2)
    maps = unit(flat - flat.mean(2, keepdim=True), dim=2)
    start = torch.randn(maps.shape[2], generator=torch.Generator().manual_seed(seed))
    nearness = -(maps @ start.to(maps.device, maps.dtype, non_blocking=True))
    centers: list[Tensor] = []
    for _ in range(min(groups, maps.shape[1])):
        center = maps.gather(1, nearness.argmin(1).view(-1, 1, 1).expand(-1, 1, maps.shape[2]))
        similarity = (maps @ center.mT)[..., 0]
        nearness = torch.maximum(nearness, similarity) if centers else similarity
        centers.append(center)
    center = torch.cat(centers, 1)
    for _ in range(_ROUNDS):
        members = one_hot((maps @ center.mT).argmax(2), center.shape[1]).to(maps.dtype)
        sums = members.mT @ maps
        center = unit(sums, dim=2).where((sums != 0).any(2, keepdim=True), center)
    return (maps @ center.mT).argmax(2)


class GroupCAM(BaseCAM, name="group-cam"):
    r"""Groups of channels by what they add to a blurred image: $\sum_g v_g M_g$ with $M_g = ReLU(\sum_{k \in g} w_k A_k)$.

    $w$ are Grad-CAM's weights, $v_g = ReLU(p(x \odot m_g + b \odot (1 - m_g)) - p(b))$ with the probability p of the
    class, the blurred image b and the upsampled and min-max normalized $m_g$ of $M_g$; a constant $M_g$ counts as
    nothing. The released code groups neighboring channels; here similar ones are grouped, so that the order of the
    channels does not matter. The thresholding of the maps, which only some versions of the code have, is left out.

    Args:
        groups: of channels.
        seed: where the grouping starts, see `group_channels`.
    """

    needs = Evidence.GRADIENTS | Evidence.RESCORE
    cost = "F + B + (groups + 1) R"

    def __init__(self, *args: Any, groups: int = 32, seed: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        check_count("groups", groups)
        self.groups, self.seed = groups, seed

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The maps of the groups, weighted by their gain in probability."""
        members = one_hot(group_channels(layer.activations, self.groups, self.seed)).to(layer.activations.dtype)
        weights = members * grad_cam_weights(gradients_of(layer)).flatten(2)
        maps = torch.einsum("nk...,nkg->ng...", layer.activations, weights).clamp(min=0)
        return torch.einsum("ng...,ng->n...", maps, self.gains(layer, maps))

    def gains(self, layer: LayerCapture, maps: Float[Tensor, "n g *s"]) -> Float[Tensor, "n g"]:
        """How much showing the positions of each map raises the probability, or 0 where it does not."""
        images, flat = widen(layer.images), maps.flatten(2)
        blurred = gaussian_blur(images, _KERNEL, _SIGMA)
        n, groups = maps.shape[:2]
        everyone = torch.arange(n, device=maps.device)
        rows = everyone.repeat_interleave(groups)
        shown = torch.cat(
            [
                layer.rescore_probability(blurred[whose] + masks * (images[whose] - blurred[whose]), whose)
                for whose, masks in zip(
                    rows.split(self.batch_size), self._masks(maps, images.shape[2:]), strict=True
                )
            ]
        )
        base = layer.rescore_probability(blurred, everyone)
        gains = (shown.view(n, groups) - base[:, None]).clamp(min=0).to(maps.dtype)
        return gains.where(flat.amax(2) > flat.amin(2), 0)
