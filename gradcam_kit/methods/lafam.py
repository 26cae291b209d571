"""LaFAM: Karjauv & Albayrak 2024, https://arxiv.org/abs/2407.06059."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture


class LaFAM(BaseCAM, name="lafam"):
    r"""Average the activations over the channels, $\frac{1}{k}\sum_k A_k$, which gives the same map for every class.

    Use this method for self-supervised backbones, which have no classes. It shows where the layer responds to anything,
    not why a classifier chose a class.

    Example:
        >>> from gradcam_kit import LaFAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> LaFAM(load_demo_model(), "layer4")(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the mean over the channels."""
        return layer.activations.mean(dim=1)
