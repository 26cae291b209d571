"""ViT-Recipro-CAM: Byun & Lee 2023, https://arxiv.org/abs/2310.02588."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.errors import CaptureError
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.methods.recipro_cam import by_position, check_window, lift, window_weights
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


class ViTReciproCAM(BaseCAM, name="vit-recipro-cam"):
    r"""Each patch token by the score that it gives alone in the last block, prefix tokens always kept: $S - \min S$.

    The tokens are masked both on the residual branch and behind the block's input normalization, which would turn a
    zeroed token into its bias. Without `target_layers` the input normalization of the last block is taken. That the map
    is lifted by its minimum is as in Recipro-CAM and could not be confirmed against this paper.

    Args:
        window: patches kept along each axis: 3 with Gaussian weights, or 1.
    """

    needs = Evidence.REPLAY
    layer_choice = LayerChoice.BLOCK
    cost = "F + Z S"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        window: int = 3,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.window = check_window(window)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Scores of all patches, with the smallest of each map subtracted.

        Raises:
            CaptureError: the layer is no input normalization of a block.
        """
        if layer.residual is None:
            raise CaptureError(
                f"ViT-Recipro-CAM needs the input normalization of a transformer block; layer {layer.layer!r} is none "
                "(its input is no module's output of the same shape). Leave target_layers out, or use ReciproCAM"
            )
        weights = window_weights(layer.activations.shape[2:], self.window, layer.activations)
        rows = torch.arange(len(layer.activations) * len(weights), device=weights.device)
        scores = torch.cat([self._keep(layer, weights, chunk) for chunk in rows.split(self.batch_size)])
        return lift(by_position(scores, len(layer.activations)), layer.activations.shape[2:])

    def _keep(self, layer: LayerCapture, weights: Tensor, rows: Tensor) -> Float[Tensor, "m *targets"]:
        assert layer.residual is not None
        whose, kept = rows // len(weights), rows % len(weights)
        mask = weights[kept].view(len(rows), 1, *layer.activations.shape[2:])
        return layer.replay(layer.activations[whose] * mask, whose, layer.residual[whose] * mask)
