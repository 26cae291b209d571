"""Eigen-Grad-CAM: no paper; known from the pytorch-grad-cam library."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.base import BaseCAM, Options, gradients_of
from gradcam_kit.types import LayerCapture


class EigenGradCAM(BaseCAM, name="eigen-grad-cam"):
    """The first principal component of G * A.

    Args:
        center: subtract each channel's mean first.
    """

    cost = "F + B + eigenproblem"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        center: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.center = center

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The component, with a fixed sign."""
        return first_component(gradients_of(layer) * layer.activations, self.center)
