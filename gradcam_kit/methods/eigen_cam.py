"""Eigen-CAM: Muhammad & Yeasin, IJCNN 2020, https://arxiv.org/abs/2008.00299."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.types import Evidence, LayerCapture


class EigenCAM(BaseCAM, name="eigen-cam"):
    """The first principal component of the activations; the same for every class.

    It shows what varies, not what the model learned: maps of networks trained on random labels look alike.

    Args:
        center: subtract each channel's mean first (the paper does not; pytorch-grad-cam does).
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F + eigenproblem"

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
        """A v_1, with a fixed sign."""
        return first_component(layer.activations, self.center)
