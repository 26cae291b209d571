"""Guided Grad-CAM: Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import upsample, weighted_sum
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.types import Evidence, LayerCapture


class GuidedGradCAM(BaseCAM, name="guided-grad-cam"):
    r"""Multiply guided backpropagation by Grad-CAM, at the size of the input, summed over the input channels.

    With guided gradients R and Grad-CAM's weights the map is $\sum_c R_c \odot \mathrm{ReLU}(\sum_k \alpha_k A_k)$. The
    map has sharp outlines where Grad-CAM is positive. It is defined for the same networks as GuidedBackprop. As in
    guided backpropagation, the outlines hardly depend on what was learned, so trust the location, not the detail.

    Example:
        >>> from gradcam_kit import GuidedGradCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> GuidedGradCAM(load_demo_model(), "layer4").explain(collate([draw(0)]).images).saliency["layer4"].shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.GRADIENTS | Evidence.GUIDED
    cost = "F + 2 B to the input"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *t"]:
        """Return the guided gradients times the upsampled positive part of Grad-CAM."""
        assert layer.guided_gradients is not None
        coarse = weighted_sum(layer.activations, grad_cam_weights(gradients_of(layer))).clamp(min=0)
        guided = layer.guided_gradients
        return (guided * upsample(coarse, guided.shape[2:])[:, None]).sum(dim=1)
