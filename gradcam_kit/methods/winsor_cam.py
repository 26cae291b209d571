"""Winsor-CAM: Wall et al., TPAMI 2026, https://arxiv.org/abs/2507.10846."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import fuse
from gradcam_kit.methods.base import BaseCAM, Options, gradients_of
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import one_of
from gradcam_kit.types import LayerCapture, LayerChoice

Importance = Literal["mean", "max", "l2"]


def winsorize(importance: Float[Tensor, "r layers"], percentile: float) -> Float[Tensor, "r layers"]:
    """Cap the positive entries of each row at a percentile of them and rescale them to [0.1, 1] (all equal: 1).

    Only large values are capped; entries that are not positive become 0. Whether the paper also raises small ones
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
    """Grad-CAM of all convolutional layers, weighted by each layer's importance with outliers capped.

    The paper sums the weighted maps, which is the fusion "mean"; "max" and "product" combine them otherwise.

    Args:
        percentile: where the positive importances are capped, in [0, 100].
        importance: of a layer, from its Grad-CAM weights: their "mean", "max" or "l2" norm, clipped at 0.
    """

    layer_choice = LayerChoice.CONVOLUTIONS
    cost = "F + B to the first convolution"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        percentile: float = 100.0,
        importance: Importance = "mean",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        if not 0 <= percentile <= 100:
            raise OptionError(f"percentile is {percentile!r}; expected a number from 0 to 100")
        self.percentile = percentile
        self.kind: Importance = one_of("importance", importance, get_args(Importance))

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Grad-CAM's."""
        return grad_cam_weights(gradients_of(layer))

    def layer_importance(self, layer: LayerCapture) -> Float[Tensor, "n *m"]:
        """Mean, maximum or L2 norm of the layer's weights, clipped at 0."""
        gradients = gradients_of(layer)
        leading = gradients.ndim - layer.activations.ndim + 1
        flat = grad_cam_weights(gradients.flatten(0, leading - 1)).flatten(1)
        weights: Tensor = flat.unflatten(0, gradients.shape[:leading])
        if self.kind == "mean":
            return weights.mean(-1).clamp(min=0)
        return weights.amax(-1).clamp(min=0) if self.kind == "max" else weights.norm(dim=-1)

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """The maps times their winsorized importance, combined: for "mean" their sum."""
        shares = winsorize(torch.stack(importance, 1), self.percentile)
        if self.fusion == "mean":
            return torch.einsum("lr...,rl->r...", torch.stack(heatmaps), shares)
        weighted = [
            torch.einsum("r...,r->r...", maps, own) for maps, own in zip(heatmaps, shares.unbind(1), strict=True)
        ]
        return fuse(weighted, self.fusion)
