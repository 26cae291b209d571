"""Eigen-Grad-CAM: no paper; known from the pytorch-grad-cam library."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.methods.components import first_component
from gradcam_kit.types import LayerCapture


class EigenGradCAM(BaseCAM, name="eigen-grad-cam"):
    """The first principal component of G * A.

    Args:
        center: subtract each channel's mean first.
    """

    cost = "F + B + eigenproblem"

    def __init__(self, *args: Any, center: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.center = center

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The component, with a fixed sign."""
        return first_component(gradients_of(layer) * layer.activations, self.center)
