"""LibraGrad: Mehri et al., CVPR 2025, https://arxiv.org/abs/2411.16760."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import OptionError, UnknownNameError
from gradcam_kit.functional import Fusion, spatial_mean
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.options import one_of
from gradcam_kit.types import GradientRule, LayerCapture, LayerChoice

Reference = Literal["mean", "zero"]


class BalancedCAM(BaseCAM, name="balanced-cam"):
    r"""Multiply balanced gradients (LibraGrad) by the activations, from which the average token is subtracted.

    Use this method for vision transformers, in which exact gradients hardly show where the evidence is. The output of a
    normalization does not change when its input is scaled, so before it, activation times gradient sums to zero.
    Balanced gradients treat normalizations, gates and attention as constant factors, so that every layer's map
    $\sum_k G_k \odot (A_k - R_k)$, with activations $A$ and their balanced gradients $G$, accounts for the score. The
    signed maps of the patch embedding and of all blocks with the same grid are added. Subtracting the average token $R$
    removes what all positions share; this step is not in the paper. For models without tokens, the automatically chosen
    layer is that of Grad-CAM. With `reference="zero"`, the map of a ReLU network equals that of HiResCAM.

    Args:
        reference: "mean" or "zero". With "mean", $R$ is the mean over the positions of the image, and the map of one
            layer sums to the score minus the score of average tokens under the same constant factors. With "zero", $R$
            is 0, and the map of one layer sums to the score minus everything that is added after the layer.
        fusion: "sum" adds the signed maps, which all have the unit of the score; for the other values see `BaseCAM`.
        gradient_rule: always "balanced" for this method.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from gradcam_kit import BalancedCAM
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> _ = torch.nn.init.normal_(model.heads.head.weight)  # torchvision initializes this weight to zero
        >>> found = BalancedCAM(model).explain(torch.rand(2, 3, 32, 32), targets=1)
        >>> found.layers, found.heatmaps.shape
        (('encoder.dropout', 'encoder.layers.encoder_layer_0'), torch.Size([2, 32, 32]))
    """

    layer_choice = LayerChoice.STREAM
    cost = "F + B to the embedding"
    fusion: Fusion = "sum"
    gradient_rule: GradientRule | str = "balanced"
    reference: Reference | str = "mean"  # accept any string, so that a wrong one gets our error message

    def check_options(self) -> None:
        """Raise an error for an unknown reference, and for exact gradients."""
        one_of("reference", self.reference, get_args(Reference), UnknownNameError)
        if self.gradient_rule == "exact":
            raise OptionError('BalancedCAM always uses balanced gradients, but gradient_rule is "exact"; use HiResCAM')

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the contribution of every position to the score."""
        activations = layer.activations
        if self.reference == "mean":
            activations = activations - spatial_mean(activations)
        return (gradients_of(layer) * activations).sum(1)
