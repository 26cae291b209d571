"""Refine-CAM: Domeniconi et al. 2026, https://arxiv.org/abs/2605.14641."""

from __future__ import annotations

from torch import nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.functional import Fusion
from gradcam_kit.methods.base import LayerOptions
from gradcam_kit.methods.grad_cam_plus_plus import GradCAMPlusPlus, Variant
from gradcam_kit.types import LayerChoice


class RefineCAM(GradCAMPlusPlus, name="refine-cam"):
    """The product of the Grad-CAM++ maps of several layers: what the deep layer means, where a shallower one sees it.

    One layer without positive evidence empties the map (`is_empty`). Without `target_layers` the last layers of the two
    deepest resolutions are taken.
    """

    layer_choice = LayerChoice.RESOLUTIONS

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        variant: Variant = "paper",
        fusion: Fusion = "product",
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(model, target_layers, variant=variant, fusion=fusion, **options)
