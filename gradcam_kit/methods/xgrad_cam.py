"""XGrad-CAM: Fu et al., BMVC 2020, https://arxiv.org/abs/2008.02312."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import spatial_sum
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture

# Below this share of sum |A|, the sum of a signed channel is mostly rounding error, and division by it would give huge
# weights.
_CANCELED = 1e-6


def xgrad_cam_weights(
    activations: Float[Tensor, "n k *s"], gradients: Float[Tensor, "n k *s"]
) -> Float[Tensor, "n k *one"]:
    r"""Average the gradients weighted by the activations: $w_k = \sum_s (G_k \odot A_k) / \sum_s A_k$.

    The weights are derived for ReLU networks, where A >= 0. A channel whose activations are all zero, or cancel to less
    than 1e-6 of their absolute sum, gets weight 0.
    """
    total = spatial_sum(activations)
    usable = total.abs() > _CANCELED * spatial_sum(activations.abs())
    return spatial_sum(gradients * activations).where(usable, 0) / total.where(usable, 1)


class XGradCAM(BaseCAM, name="xgrad-cam"):
    """Weight channels by their mean gradient, in which each position is weighted by its activation.

    After a ReLU, the map sums to the contribution of the layer to the score, as the map of HiResCAM does, but with the
    smoothness of one weight per channel. At layers with negative activations the weights may grow large; use GradCAM
    there.

    Example:
        >>> from gradcam_kit import XGradCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> XGradCAM(load_demo_model(), "layer4")(collate([draw(0)]).images, targets=2).shape
        torch.Size([1, 128, 128])
    """

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return the axiom-based weights of the paper."""
        return xgrad_cam_weights(layer.activations, gradients_of(layer))
