"""ODAM: Zhao & Chan, ICLR 2023, https://arxiv.org/abs/2304.06354; Zhao et al., TPAMI 2024."""

from __future__ import annotations

from math import ceil

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import gaussian_blur
from gradcam_kit.methods.base import BaseCAM, gradients_of
from gradcam_kit.options import non_negative
from gradcam_kit.types import LayerCapture


class ODAM(BaseCAM, name="odam"):
    r"""Weight each position by its smoothed gradient: $\sum_k \Phi(G_k) \odot A_k$, with a Gaussian $\Phi$.

    Use this method for detectors. The gradient of one box is concentrated near this box, so each instance gets its own
    map, whereas channel weights averaged over the image would show all instances of a class. Pass targets made by
    `DetectionTarget.of`, and choose a layer of the backbone or the level of the feature pyramid from which the box
    comes.

    Args:
        sigma: standard deviation of the Gaussian, in cells of the layer, at least 0. The paper derives it from the size
            of the object; the released code for FCOS does not smooth, which is `sigma=0` here.

    Example:
        >>> from gradcam_kit import ODAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> ODAM(load_demo_model(), "layer4")(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    sigma: float = 1.0

    def check_options(self) -> None:
        """Raise OptionError for a negative `sigma`."""
        self.sigma = non_negative("sigma", self.sigma)

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *s"]:
        """Return the smoothed gradients."""
        gradients = gradients_of(layer)
        return gaussian_blur(gradients, 2 * ceil(3 * self.sigma) + 1, self.sigma) if self.sigma else gradients
