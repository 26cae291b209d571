"""FullGrad: Srinivas & Fleuret, NeurIPS 2019, https://arxiv.org/abs/1905.00780."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import normalize, upsample
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


def post_process(terms: Float[Tensor, "n k *s"]) -> Float[Tensor, "n *s"]:
    """psi of the paper, then the sum over channels: absolute value, min-max per sample over all channels jointly."""
    return normalize(terms.abs()).sum(dim=1)


class FullGrad(BaseCAM, name="full-grad"):
    r"""Input gradient and all bias gradients: $U\psi(\nabla_x y \odot x) + \sum_l \sum_k U\psi(b_l \odot G_l)$.

    Before psi the terms add up to the score, for piecewise linear networks. The channels are summed before upsampling,
    which is linear. `target_layers` is not used. Biases without positions (linear heads) have no place in the map.
    """

    needs = Evidence.GRADIENTS | Evidence.BIASES
    layer_choice = LayerChoice.INPUT
    cost = "F + B to the input"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *t"]:
        """The sum over the input and all biases."""
        total = post_process(gradients_of(layer) * layer.activations)
        for terms in layer.bias_gradients or ():
            if terms.ndim == layer.activations.ndim:
                total = total + upsample(post_process(terms), total.shape[1:])
        return total
