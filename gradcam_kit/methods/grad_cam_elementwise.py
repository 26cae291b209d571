"""Grad-CAM elementwise: no paper; known from the pytorch-grad-cam library."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


class GradCAMElementwise(BaseCAM, name="grad-cam-elementwise"):
    r"""The positive part of each product: $\sum_k \mathrm{ReLU}(G_k \odot A_k)$; equals LayerCAM where A >= 0."""

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Sum of the positive products."""
        return (gradients_of(layer) * layer.activations).clamp(min=0).sum(dim=1)
