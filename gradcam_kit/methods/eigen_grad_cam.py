"""Eigen-Grad-CAM: no paper; known from the pytorch-grad-cam library."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


class EigenGradCAM(BaseCAM, name="eigen-grad-cam"):
    r"""Return the first principal component of the gradients times the activations, $G \odot A$.

    The map is as smooth as that of Eigen-CAM, and specific to the class. It shows only the strongest component, so one
    of two objects with different parts may be missing.

    Args:
        center: whether to subtract each channel's mean first.

    Example:
        >>> from gradcam_kit import EigenGradCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> EigenGradCAM(load_demo_model(), "layer4", center=True)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    cost = "F + B + eigenproblem"

    center: bool = False

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the component with the sign chosen by `fix_sign`."""
        return first_component(gradients_of(layer) * layer.activations, self.center)
