"""LayerCAM: Jiang et al., IEEE Transactions on Image Processing 2021, https://doi.org/10.1109/TIP.2021.3089943."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import Fusion, normalize
from gradcam_kit.methods.base import BaseCAM, LayerOptions, gradients_of
from gradcam_kit.types import LayerCapture


class LayerCAM(BaseCAM, name="layer-cam"):
    r"""Each position weighted by its positive gradient: $\sum_k \mathrm{ReLU}(G_k) \odot A_k$.

    Made for early layers too. The maps of several layers are fused by their maximum, after those of the shallow layers
    were scaled by Equation 9, $\tanh(\gamma M / \max M)$. Shallow are all layers but the last to run; this reading of
    the paper's "shallow" could not be confirmed against its text.

    Args:
        gamma: of Equation 9.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        fusion: Fusion = "max",
        gamma: float = 2.0,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(model, target_layers, fusion=fusion, **options)
        if not gamma > 0:
            raise OptionError(f"gamma is {gamma!r}; expected a positive number")
        self.gamma = gamma

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *s"]:
        """The positive part of the gradients."""
        return gradients_of(layer).clamp(min=0)

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """Equation 9 for all layers but the deepest."""
        return heatmaps if depth == layers - 1 else (self.gamma * normalize(heatmaps, "max")).tanh()
