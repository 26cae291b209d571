"""Seg-Eigen-CAM: Chung & Ying, Applied Sciences 2025, https://doi.org/10.3390/app15137562."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


class SegEigenCAM(BaseCAM, name="seg-eigen-cam"):
    r"""Return the first principal component of $|G| \odot A$, flipped if its smallest value outweighs its largest.

    The method is made for segmentation: with `targets=SegmentationTarget(mask, classes)` it shows the structure on
    which the class in a region depends. The absolute gradient does not distinguish evidence for a class from evidence
    against it.

    Example:
        >>> from gradcam_kit import SegEigenCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> SegEigenCAM(load_demo_model(), "layer4")(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    cost = "F + B + eigenproblem"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the component, flipped if its smallest value outweighs its largest."""
        return first_component(gradients_of(layer).abs() * layer.activations)
