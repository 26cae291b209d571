"""FullGrad: Srinivas & Fleuret, NeurIPS 2019, https://arxiv.org/abs/1905.00780."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import normalize, upsample
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


def post_process(terms: Float[Tensor, "n k *s"]) -> Float[Tensor, "n *s"]:
    """Apply psi of the paper (absolute value, min-max per sample over all channels jointly), and sum the channels."""
    return normalize(terms.abs()).sum(dim=1)


class FullGrad(BaseCAM, name="full-grad"):
    r"""Sum the input gradient and all bias gradients: $U\psi(\nabla_x y \odot x) + \sum_l \sum_k U\psi(b_l \odot G_l)$.

    The map has the resolution of the image and accounts for the complete score: before psi is applied, the terms of a
    piecewise linear network sum to the score. Because of the absolute value, the map does not distinguish evidence for
    a class from evidence against it. The channels are summed before upsampling, which gives the same map because
    upsampling is linear. `target_layers` is not used. Biases without positions, such as those of linear heads, are part
    of the score but not of the map.

    Example:
        >>> from gradcam_kit import FullGrad
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> [maps.shape for maps in FullGrad(load_demo_model()).explain(collate([draw(0)]).images).saliency.values()]
        [torch.Size([1, 128, 128])]
    """

    needs = Evidence.GRADIENTS | Evidence.BIASES
    layer_choice = LayerChoice.INPUT
    cost = "F + B to the input"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *t"]:
        """Return the sum over the input and all biases."""
        total = post_process(gradients_of(layer) * layer.activations)
        for terms in layer.bias_gradients or ():
            if terms.ndim == layer.activations.ndim:
                total = total + upsample(post_process(terms), total.shape[1:])
        return total
