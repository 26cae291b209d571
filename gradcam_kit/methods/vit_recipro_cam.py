"""ViT-Recipro-CAM: Byun & Lee 2023, https://arxiv.org/abs/2310.02588."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import CaptureError
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.recipro_cam import by_position, check_window, lift, window_weights
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


class ViTReciproCAM(BaseCAM, name="vit-recipro-cam"):
    r"""Score each patch token alone in the last block, with all prefix tokens kept: $S - \min S$.

    This is Recipro-CAM for vision transformers. It needs no gradients, but one pass through the last block and the head
    for each patch. The tokens are masked both on the residual branch and after the block's input normalization, because
    the normalization would turn a zeroed token into its bias. Without `target_layers`, the input normalization of the
    last block is used. As in Recipro-CAM, the minimum of the map is subtracted from it; this could not be confirmed
    against the paper.

    Args:
        window: patches kept along each axis: 3 with Gaussian weights, or 1.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from gradcam_kit import ViTReciproCAM
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> _ = torch.nn.init.normal_(model.heads.head.weight)  # torchvision initializes this weight to zero
        >>> ViTReciproCAM(model, window=1)(torch.rand(2, 3, 32, 32), targets=1).shape
        torch.Size([2, 32, 32])
    """

    needs = Evidence.REPLAY
    layer_choice = LayerChoice.BLOCK
    cost = "F + Z S"

    window: int = 3

    def check_options(self) -> None:
        """Raise OptionError for a window other than 1 and 3."""
        check_window(self.window)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the scores of all patches, with the smallest of each map subtracted.

        Raises:
            CaptureError: the layer is not the input normalization of a block.
        """
        if layer.residual is None:
            raise CaptureError(
                "ViT-Recipro-CAM needs the input normalization of a transformer block; layer "
                f"{layer.layer!r} is not one (its input is not the output of a module with the same shape). "
                "Leave target_layers out, or use ReciproCAM"
            )
        weights = window_weights(layer.activations.shape[2:], self.window, layer.activations)
        rows = torch.arange(len(layer.activations) * len(weights), device=weights.device)
        scores = torch.cat([self._keep(layer, weights, chunk) for chunk in rows.split(self.batch_size)])
        return lift(by_position(scores, len(layer.activations)), layer.activations.shape[2:])

    def _keep(self, layer: LayerCapture, weights: Tensor, rows: Tensor) -> Float[Tensor, "m *targets"]:
        """Score patch `row % Z` of sample `row // Z` alone."""
        assert layer.residual is not None
        sample_index, kept = rows // len(weights), rows % len(weights)
        mask = weights[kept].view(len(rows), 1, *layer.activations.shape[2:])
        return layer.replay(layer.activations[sample_index] * mask, sample_index, layer.residual[sample_index] * mask)
