"""ShapleyCAM: Cai 2025, https://arxiv.org/abs/2501.06261."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.capture import ClassTarget
from gradcam_kit.functional import spatial_mean
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import Evidence, LayerCapture


@dataclass(frozen=True, eq=False)
class LogitPlusLogProbability(ClassTarget):
    """Score classes by z_c + log softmax_c, since the second derivative of z_c is 0 after piecewise linear layers."""

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return z_c + log p_c, in float32 or wider."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits + logits.log_softmax(1)).gather(1, classes)


def shapley_cam_weights(
    gradients: Float[Tensor, "n k *s"], curvature: Float[Tensor, "n k *s"]
) -> Float[Tensor, "n k *one"]:
    r"""Estimate Shapley values to second order: $w_k = \mathrm{mean}_s (G - \frac{1}{2} H A)_k$, H = d²y / dA².

    Args:
        gradients: d score / d activation.
        curvature: H A, from one Hessian-vector product.
    """
    return spatial_mean(gradients - curvature / 2)


class ShapleyCAM(BaseCAM, name="shapley-cam"):
    """Correct Grad-CAM's weights by the curvature of the score.

    Use this method for scores that saturate, such as probabilities. ShapleyCAM equals Grad-CAM where the score is
    piecewise linear, so plain class indices are scored by the logit plus the log-probability. The second derivative
    about doubles the cost.

    Example:
        >>> from gradcam_kit import ShapleyCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> ShapleyCAM(load_demo_model(), "layer4")(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.GRADIENTS | Evidence.CURVATURE
    target_type = LogitPlusLogProbability
    cost = "F + B + Hessian-vector product"

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return the gradient minus half the curvature, averaged over space."""
        assert layer.curvature is not None
        return shapley_cam_weights(gradients_of(layer), layer.curvature)
