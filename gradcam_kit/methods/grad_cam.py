"""Grad-CAM: Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import spatial_mean
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


def grad_cam_weights(gradients: Float[Tensor, "n k *s"]) -> Float[Tensor, "n k *one"]:
    r"""Average the gradients over space, Equation 1: $\alpha_k = \frac{1}{Z}\sum_{ij} \partial y / \partial A_k(i,j)$.

    Args:
        gradients: d score / d activation, in score units per activation unit; not normalized.

    Returns:
        One weight per channel; spatial axes are kept with size 1 so that it broadcasts against the activations.
    """
    return spatial_mean(gradients)


class GradCAM(BaseCAM, name="grad-cam"):
    """Channels weighted by their mean gradient, Equation 2 (before its ReLU): sum_k alpha_k A_k."""

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Equation 1."""
        return grad_cam_weights(gradients_of(layer))
