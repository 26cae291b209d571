"""FEM: Fuad et al., IPTA 2020, https://hal.science/hal-02963298."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.functional import spatial_mean
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.options import non_negative
from gradcam_kit.types import Evidence, LayerCapture


def fem_weights(activations: Float[Tensor, "n k *s"], sigmas: float = 2.0) -> Float[Tensor, "n k *one"]:
    r"""The share of strong positions: $w_k = \mathrm{mean}_s [A_k > \mu_k + \mathrm{sigmas}\,\sigma_k]$.

    The standard deviation is that of the population; a constant channel gets weight 0. Other descriptions weigh a
    channel by its mean instead; which one the paper prints could not be confirmed.
    """
    mean = spatial_mean(activations)
    deviation = spatial_mean((activations - mean) ** 2).sqrt()
    return spatial_mean((activations > mean + sigmas * deviation).to(activations.dtype)).where(deviation > 0, 0)


class FEM(BaseCAM, name="fem"):
    """Channels weighted by how often they fire strongly; the same for every class.

    Args:
        sigmas: standard deviations above the mean from which on a position counts as strong.
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        sigmas: float = 2.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.sigmas = non_negative("sigmas", sigmas)

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """The share of strong positions."""
        return fem_weights(layer.activations, self.sigmas)
