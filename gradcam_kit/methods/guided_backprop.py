"""Guided backpropagation: Springenberg et al., ICLR workshop 2015, https://arxiv.org/abs/1412.6806."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice


class GuidedBackprop(BaseCAM, name="guided-backprop"):
    r"""Return the gradient at the input, with negative gradients dropped at every ReLU, summed over the input channels.

    The backward pass of a ReLU of x turns a gradient R into $\mathrm{ReLU}(R) \odot [x > 0]$. The map has sharp
    outlines at the resolution of the image. Only networks whose activation functions are ReLU, ReLU6, PReLU or
    LeakyReLU can be explained. The map shows edges rather than what the model learned: the method fails the sanity
    checks of Adebayo et al. (NeurIPS 2018). `target_layers` is not used.

    Example:
        >>> from gradcam_kit import GuidedBackprop
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> GuidedBackprop(load_demo_model())(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.GUIDED
    layer_choice = LayerChoice.INPUT
    cost = "F + B to the input"

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *t"]:
        """Return the guided gradients, summed over the input channels."""
        assert layer.guided_gradients is not None
        return layer.guided_gradients.sum(dim=1)
