"""HiResCAM: Draelos & Carin 2020, https://arxiv.org/abs/2011.08891."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.types import LayerCapture


class HiResCAM(BaseCAM, name="hires-cam"):
    """Each position weighted by its own gradient: sum_k G_k * A_k.

    If one linear layer follows, the map sums to the score minus the bias. Noisier than Grad-CAM at early layers.
    """

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *s"]:
        """The gradients themselves."""
        return gradients_of(layer)
