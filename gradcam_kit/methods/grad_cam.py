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
        One weight per channel; spatial axes are kept with size 1, so that the weights broadcast against the
        activations.
    """
    return spatial_mean(gradients)


class GradCAM(BaseCAM, name="grad-cam"):
    r"""Weight channels by their mean gradient, Equation 2 (before its ReLU): $\sum_k \alpha_k A_k$.

    This is the method to start with: it is fast, class-specific, and at the last layer with positions on a par with
    most other methods. At earlier layers, one weight per channel is too coarse; use LayerCAM there, or HiResCAM if the
    exact positions matter.

    Example:
        >>> from gradcam_kit import GradCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> batch = collate([draw(0), draw(1)])
        >>> heatmaps = GradCAM(load_demo_model(), "layer4")(batch.images)
        >>> heatmaps.shape
        torch.Size([2, 128, 128])
        >>> bool(heatmaps[batch.masks].mean() > 3 * heatmaps[~batch.masks].mean())  # the object, not the background
        True
    """

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return the weights of Equation 1."""
        return grad_cam_weights(gradients_of(layer))
