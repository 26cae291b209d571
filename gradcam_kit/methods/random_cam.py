"""Random-CAM: random channel weights, the control that every comparison needs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.functional import on_device
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.types import Evidence, LayerCapture


class RandomCAM(BaseCAM, name="random-cam"):
    """Channels weighted by one draw of U(-1, 1) that all samples share; the same for every class.

    Args:
        seed: of the draw, which is made on the host so that every device gets the same weights.
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F"

    def __init__(
        self, model: nn.Module, target_layers: TargetLayers | None = None, *, seed: int = 0, **options: Unpack[Options]
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.seed = seed

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """The draw."""
        n, k, *positions = layer.activations.shape
        generator = torch.Generator("cpu").manual_seed(self.seed)
        drawn = 2 * torch.rand(k, generator=generator, dtype=torch.float32, device="cpu") - 1
        drawn = on_device(drawn, layer.activations.device, layer.activations.dtype)
        return drawn.view(1, k, *(1 for _ in positions)).expand(n, -1, *(1 for _ in positions))
