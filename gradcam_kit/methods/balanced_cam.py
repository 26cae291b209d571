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

    The method to use for vision transformers, in which exact gradients hardly tell where the evidence is: a
    normalization does not change when its input is scaled, so before it, activation times gradient sums to zero. With
    balanced gradients, normalizations, gates and attention are constant factors, and every layer's map
    $\sum_k G_k \odot (A_k - R_k)$ accounts for the score. The signed maps of the patch embedding and of all blocks on
    its grid are added. Subtracting the average token $R$, which is not in the paper, removes position and background.
    For models without tokens, the automatic layer is that of Grad-CAM, and with `reference="zero"` the map of a ReLU
    network is that of HiResCAM.

    Args:
        reference: "mean": $R$ is the mean over the positions of the image, and the map of one layer sums to the score
            minus the score that the network with the same constant factors gives an image of average tokens; "zero":
            the map sums to the score minus everything that is added after the layer.
        fusion: "sum" of the signed maps, which all have the unit of the score; others as in `BaseCAM`.
        gradient_rule: always "balanced" for this method.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> from gradcam_kit import BalancedCAM
        >>> model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
        >>> _ = torch.nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
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
        """Return the share of every position in the score."""
        activations = layer.activations
        if self.reference == "mean":
            activations = activations - spatial_mean(activations)
        return (gradients_of(layer) * activations).sum(1)
