"""Winsor-CAM: Wall et al., TPAMI 2026, https://arxiv.org/abs/2507.10846."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import OptionError
from gradcam_kit.functional import fuse
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import one_of
from gradcam_kit.types import LayerCapture, LayerChoice

Importance = Literal["mean", "max", "l2"]


def winsorize(importance: Float[Tensor, "r layers"], percentile: float) -> Float[Tensor, "r layers"]:
    """Cap the positive entries of each row at their percentile and rescale them to [0.1, 1]. Equal entries become 1.

    Only large values are capped; entries that are not positive become 0. Whether the paper also raises small values
    could not be confirmed.
    """
    positive = importance > 0
    caps = importance.where(positive, torch.nan).nanquantile(percentile / 100, dim=1, keepdim=True).nan_to_num()
    capped = torch.minimum(importance, caps)
    lowest = capped.where(positive, torch.inf).amin(1, keepdim=True)
    span = caps.where(positive.any(1, keepdim=True), 0) - lowest.where(lowest < torch.inf, 0)
    scaled = 0.1 + 0.9 * (capped - lowest) / span.where(span > 0, 1)
    return scaled.where(span > 0, 1.0).where(positive, 0.0)


class WinsorCAM(BaseCAM, name="winsor-cam"):
    r"""Weight the Grad-CAM maps of all convolutions by each layer's importance, with outliers capped: $\sum_l s_l M_l$.

    The map shows what the complete network used, so no layer has to be chosen. A higher `percentile` shifts the map
    from detail to semantics. Shallow layers add noise. The paper sums the weighted maps, which is the fusion "mean";
    "max" and "product" are alternatives to this sum.

    Args:
        percentile: percentile at which the positive importances are capped, in [0, 100].
        importance: how the importance of a layer is computed from its Grad-CAM weights: their "mean" or "max", clipped
            at 0, or their "l2" norm.

    Example:
        >>> from gradcam_kit import WinsorCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> found = WinsorCAM(load_demo_model(), percentile=80.0).explain(collate([draw(0)]).images)
        >>> found.layers[0], len(found.layers)
        ('conv1', 13)
    """

    layer_choice = LayerChoice.CONVOLUTIONS
    cost = "F + B to the first convolution"

    percentile: float = 100.0
    importance: Importance = "mean"

    def check_options(self) -> None:
        """Raise an error for a percentile outside [0, 100], or an unknown importance."""
        if not 0 <= self.percentile <= 100:
            raise OptionError(f"percentile is {self.percentile!r}; expected a number from 0 to 100")
        one_of("importance", self.importance, get_args(Importance))

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return Grad-CAM's weights."""
        return grad_cam_weights(gradients_of(layer))

    def layer_importance(self, layer: LayerCapture) -> Float[Tensor, "n *m"]:
        """Return the mean, maximum or L2 norm of the layer's weights, clipped at 0."""
        gradients = gradients_of(layer)
        leading = gradients.ndim - layer.activations.ndim + 1
        flat = grad_cam_weights(gradients.flatten(0, leading - 1)).flatten(1)
        weights: Tensor = flat.unflatten(0, gradients.shape[:leading])
        if self.importance == "mean":
            return weights.mean(-1).clamp(min=0)
        return weights.amax(-1).clamp(min=0) if self.importance == "max" else weights.norm(dim=-1)

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """Combine the maps, each multiplied by its winsorized importance. The fusion "mean" is their sum."""
        shares = winsorize(torch.stack(importance, 1), self.percentile)
        if self.fusion == "mean":
            return torch.einsum("lr...,rl->r...", torch.stack(heatmaps), shares)
        weighted = [
            torch.einsum("r...,r->r...", maps, own) for maps, own in zip(heatmaps, shares.unbind(1), strict=True)
        ]
        return fuse(weighted, self.fusion)
