"""Grad-CAM++: Chattopadhay et al., WACV 2018, https://arxiv.org/abs/1710.11063."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import spatial_sum
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.options import one_of
from gradcam_kit.types import LayerCapture

Variant = Literal["paper", "authors"]


def grad_cam_plus_plus_weights(
    activations: Float[Tensor, "n k *s"], gradients: Float[Tensor, "n k *s"], variant: Variant = "paper"
) -> Float[Tensor, "n k *one"]:
    r"""Return the weights of Equation 5 with the coefficients of Equation 19.

    $\alpha = G^2 / (2 G^2 + (\sum_s A_k) G^3)$ and $w_k = \sum_s \alpha\, \mathrm{ReLU}(G)$. Where $G \ne 0$, it is
    computed as $\alpha = 1 / (2 + G \sum_s A_k)$, which needs no epsilon and avoids cubes that could underflow. A
    denominator of exactly 0 is replaced by 1, as in the authors' code. The factors $e^y$ of the derivation cancel in
    $\alpha$.

    Args:
        activations: output of the layer; the paper assumes $A \ge 0$. Negative activations can bring the denominator
            near 0.
        gradients: d score / d activation.
        variant: "paper", or "authors", which divides $\alpha$ by its sum over the positions with $G > 0$.
    """
    rising = gradients.clamp(min=0)
    denominator = 2 + gradients * spatial_sum(activations)
    # Only positions with G > 0 contribute to w, so alpha is 0 elsewhere; it is G^2 where the denominator is 0.
    alpha = (rising > 0) / denominator.where(denominator != 0, rising**-2)
    if variant == "authors":
        total = spatial_sum(alpha)
        alpha = alpha / total.where(total != 0, 1)
    return spatial_sum(alpha * rising)


class GradCAMPlusPlus(BaseCAM, name="grad-cam++"):
    """Weight channels by their positive gradients, with each position weighted by its share of the channel's evidence.

    The map covers several objects of the same class more evenly than that of Grad-CAM. The method ignores negative
    gradients, so it separates similar classes less well, and its weights depend on the scale of the score.

    Args:
        variant: "paper" (Equation 19) or "authors" (their released code, which normalizes alpha).

    Example:
        >>> from gradcam_kit import GradCAMPlusPlus
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> cam = GradCAMPlusPlus(load_demo_model(), "layer4", variant="authors")
        >>> cam(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    variant: Variant = "paper"

    def check_options(self) -> None:
        """Raise an error for an unknown variant."""
        one_of("variant", self.variant, get_args(Variant))

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return the weights of Equations 5 and 19."""
        return grad_cam_plus_plus_weights(layer.activations, gradients_of(layer), self.variant)
