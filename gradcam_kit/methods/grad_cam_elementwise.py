"""Grad-CAM elementwise: no paper; known from the pytorch-grad-cam library."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


class GradCAMElementwise(BaseCAM, name="grad-cam-elementwise"):
    r"""Sum the positive part of each product: $\sum_k \mathrm{ReLU}(G_k \odot A_k)$.

    The map equals that of LayerCAM where A >= 0, so it differs only at layers with negative activations. At these
    layers, negative activations with a negative gradient are also evidence.

    Example:
        >>> from gradcam_kit import GradCAMElementwise
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> cam = GradCAMElementwise(load_demo_model(), "layer4.bn2")
        >>> bool((cam.explain(collate([draw(0)]).images).saliency["layer4.bn2"] >= 0).all())
        True
    """

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the sum of the positive products."""
        return (gradients_of(layer) * layer.activations).clamp(min=0).sum(dim=1)
