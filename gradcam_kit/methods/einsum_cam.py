"""EinsumCAM: the lightweight variant of this package, CAM (https://arxiv.org/abs/1512.04150) as one contraction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import weighted_sum
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture


def einsum_cam(activations: Float[Tensor, "n k *s"], head_weight: Float[Tensor, "n *m k"]) -> Float[Tensor, "n *ms"]:
    """Contract channels with head weights: sum_k W_k A_k / Z, for m classes at once.

    With the head's bias added, the sum of a map over its Z positions is the logit.

    Args:
        activations: input of the mean pooling before the head.
        head_weight: the head's row for each explained class `(n, k)` or `(n, m, k)`.
    """
    positions = activations[0, 0].numel()
    if head_weight.ndim == 2:
        return torch.einsum("nk...,nk->n...", activations, head_weight) / positions
    return torch.einsum("nk...,nmk->nm...", activations, head_weight) / positions


class EinsumCAM(BaseCAM, name="einsum-cam"):
    r"""Contract the activations with the weights of a linear head: one forward pass for any number of classes.

    The map of class c is $\frac{1}{Z}\sum_k W_{ck} A_k$. Use this method to explain a thousand classes at once, or as a
    fallback for models that CAM rejects. If the model has no linear head after mean pooling, which is checked for every
    sample, the channel weights are the gradient of the layer's summed output with respect to the layer's own weight,
    per sample. The map is then the same for every class.

    Example:
        >>> from gradcam_kit import EinsumCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> found = EinsumCAM(load_demo_model(), "layer4").explain(collate([draw(0)]).images, targets=[list(range(8))])
        >>> found.saliency["layer4"].shape
        torch.Size([1, 8, 16, 16])
    """

    needs = Evidence.HEAD | Evidence.WEIGHT_GRADIENTS
    cost = "F"

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the maps of all targets from one contraction."""
        if layer.head is not None:
            return einsum_cam(layer.activations, layer.head.target_weights)
        one = self.saliency(layer)
        if layer.scores is None or layer.scores.ndim == 1:
            return one
        return one[:, None].expand(-1, layer.scores.shape[1], *one.shape[1:])

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return the class-agnostic weights of a layer without a usable head."""
        assert layer.weight_gradients is not None
        return layer.weight_gradients.view(*layer.weight_gradients.shape, *(1 for _ in layer.activations.shape[2:]))

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the map of one target."""
        if layer.head is not None:
            return einsum_cam(layer.activations, layer.head.target_weights)
        return weighted_sum(layer.activations, self.weights(layer))
