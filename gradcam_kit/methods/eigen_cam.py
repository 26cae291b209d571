"""Eigen-CAM: Muhammad & Yeasin, IJCNN 2020, https://arxiv.org/abs/2008.00299."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture


class EigenCAM(BaseCAM, name="eigen-cam"):
    r"""Return the first principal component of the activations, $A v_1$, which is the same for every class.

    The map is smooth and cheap. The method needs neither gradients nor classes, so it runs on detectors and
    self-supervised backbones. The map shows the strongest pattern of the activations, not what the model learned: maps
    of networks trained on random labels look alike.

    Args:
        center: whether to subtract each channel's mean first, as pytorch-grad-cam does and the paper does not.

    Example:
        >>> from gradcam_kit import EigenCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> EigenCAM(load_demo_model(), "layer4", center=True)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F + eigenproblem"

    center: bool = False

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return A v_1 with the sign chosen by `fix_sign`."""
        return first_component(layer.activations, self.center)
