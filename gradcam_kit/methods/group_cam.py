"""Group-CAM: Zhang et al. 2021, https://arxiv.org/abs/2103.13859."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from gradcam_kit.capture import rows_at_once
from gradcam_kit.functional import at_least_float32, gaussian_blur, normalize, upsample
from gradcam_kit.methods.arithmetic.distinct_rows import distinct_rows, unit_rows
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import positive_int
from gradcam_kit.types import Evidence, LayerCapture

_KERNEL, _SIGMA = 51, 50.0  # as in the released code
_ROUNDS = 10


def group_channels(activations: Float[Tensor, "n k *s"], groups: int, seed: int = 0) -> Int[Tensor, "n k"]:
    """Group channels with similar maps by k-means on their correlation. The order of the channels does not matter.

    The first center is the channel most like a seeded random map, and each further center is the channel least like the
    centers so far. Ten rounds of assigning channels to centers and averaging groups follow. All images of a batch share
    the random map.

    Args:
        activations: maps to compare; constant maps have no structure and join the first group.
        groups: maximum number of groups; fewer if there are fewer channels.
        seed: seed of the random map.
    """
    flat = activations.flatten(2)
    varies = (flat.amax(2) > flat.amin(2))[..., None]
    maps = unit_rows(flat - flat.mean(2, keepdim=True)).where(varies, 0)
    start = torch.randn(maps.shape[2], generator=torch.Generator().manual_seed(seed))
    chosen = distinct_rows(maps, min(groups, maps.shape[1]), start)
    center = maps.gather(1, chosen[..., None].expand(-1, -1, maps.shape[2]))
    for _ in range(_ROUNDS):
        members = one_hot((maps @ center.mT).argmax(2), center.shape[1]).to(maps.dtype)
        sums = members.mT @ maps
        center = unit_rows(sums).where((sums != 0).any(2, keepdim=True), center)
    return (maps @ center.mT).argmax(2)


class GroupCAM(BaseCAM, name="group-cam"):
    r"""Weight groups of similar channels by what they add to a blurred image: $\sum_g v_g M_g$.

    The method nearly reaches the quality of Score-CAM with a few passes instead of one per channel.
    $M_g = ReLU(\sum_{k \in g} w_k A_k)$ with Grad-CAM's weights w; $m_g$ is $M_g$ upsampled and min-max normalized, and
    $v_g = ReLU(p(x \odot m_g + b \odot (1 - m_g)) - p(b))$ with the probability p of the class and the blurred image b.
    A constant $M_g$ contributes nothing. The released code groups neighboring channels and thresholds the maps; this
    implementation groups similar channels, so that the order of the channels does not matter, and has no threshold.

    Args:
        groups: number of groups of channels, at least 1; each costs a forward pass.
        seed: seed of the random map with which the grouping starts, see `group_channels`.

    Example:
        >>> from gradcam_kit import GroupCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> GroupCAM(load_demo_model(), "layer4", groups=4)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.GRADIENTS | Evidence.RESCORE
    cost = "F + B + (groups + 1) R"

    groups: int = 32
    seed: int = 0

    def check_options(self) -> None:
        """Raise OptionError for fewer than one group."""
        self.groups = positive_int("groups", self.groups)

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the sum of the groups' maps, each weighted by its gain in probability."""
        members = one_hot(group_channels(layer.activations, self.groups, self.seed), self.groups)
        weights = members * grad_cam_weights(gradients_of(layer)).flatten(2)
        maps = torch.einsum("nk...,nkg->ng...", layer.activations, weights).clamp(min=0)
        return torch.einsum("ng...,ng->n...", maps, self.gains(layer, maps))

    def gains(self, layer: LayerCapture, maps: Float[Tensor, "n g *s"]) -> Float[Tensor, "n g"]:
        """Return for each map how much the sharp image at its high positions raises the probability, at least 0."""
        n, groups = maps.shape[:2]
        images, flat = at_least_float32(layer.images), maps.flatten(0, 1)
        blurred = gaussian_blur(images, _KERNEL, _SIGMA)
        before = layer.rescore_probability(blurred, torch.arange(n, device=maps.device))
        after = []
        together = rows_at_once(self.batch_size, images[:1].nbytes, images.device)
        for chunk in torch.arange(n * groups, device=maps.device).split(together):
            sample_index = chunk // groups
            masks = normalize(upsample(flat[chunk], images.shape[2:]))[:, None]
            after.append(
                layer.rescore_probability(blurred[sample_index].lerp(images[sample_index], masks), sample_index)
            )
        gains = (torch.cat(after).view(n, groups) - before[:, None]).clamp(min=0).to(maps.dtype)
        return gains.where(maps.flatten(2).amax(2) > maps.flatten(2).amin(2), 0)
