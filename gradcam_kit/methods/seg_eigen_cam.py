"""Seg-Eigen-CAM: Chung & Ying, Applied Sciences 2025, https://doi.org/10.3390/app15137562."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


class SegEigenCAM(BaseCAM, name="seg-eigen-cam"):
    """The first principal component of |G| * A, flipped where its smallest value outweighs its largest."""

    cost = "F + B + eigenproblem"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The component, with a fixed sign."""
        return first_component(gradients_of(layer).abs() * layer.activations)
