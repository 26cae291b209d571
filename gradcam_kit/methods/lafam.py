"""LaFAM: Karjauv & Albayrak 2024, https://arxiv.org/abs/2407.06059."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture


class LaFAM(BaseCAM, name="lafam"):
    r"""The mean over the channels, $\frac{1}{k}\sum_k A_k$: for self-supervised backbones; the same for every class."""

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Mean over the channels."""
        return layer.activations.mean(dim=1)
