"""FEM: Fuad et al., IPTA 2020, https://hal.science/hal-02963298."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import spatial_mean
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.options import non_negative
from gradcam_kit.types import Evidence, LayerCapture


def fem_weights(activations: Float[Tensor, "n k *s"], sigmas: float = 2.0) -> Float[Tensor, "n k *one"]:
    r"""Return the share of strong positions: $w_k = \mathrm{mean}_s [A_k > \mu_k + \mathrm{sigmas}\,\sigma_k]$.

    The standard deviation is that of the population, and a constant channel gets weight 0. Other descriptions weight a
    channel by its mean instead; which of the two weights the paper uses could not be confirmed.
    """
    mean = spatial_mean(activations)
    deviation = spatial_mean((activations - mean) ** 2).sqrt()
    return spatial_mean((activations > mean + sigmas * deviation).to(activations.dtype)).where(deviation > 0, 0)


class FEM(BaseCAM, name="fem"):
    """Weight channels by how often they respond strongly, which gives the same map for every class.

    The method needs neither gradients nor classes. It finds rare, strong features, whether or not the class depends on
    them.

    Args:
        sigmas: a position is strong if it exceeds the channel's mean by more than this many standard deviations; at
            least 0.

    Example:
        >>> from gradcam_kit import FEM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> FEM(load_demo_model(), "layer4", sigmas=1.0)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F"

    sigmas: float = 2.0

    def check_options(self) -> None:
        """Raise OptionError for a negative `sigmas`."""
        self.sigmas = non_negative("sigmas", self.sigmas)

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return the share of strong positions of each channel."""
        return fem_weights(layer.activations, self.sigmas)
