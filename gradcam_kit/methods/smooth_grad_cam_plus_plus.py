"""Smooth Grad-CAM++: Omeiza et al. 2019, https://arxiv.org/abs/1908.01224."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.functional import spatial_sum
from gradcam_kit.methods.arithmetic.perturbations import gaussian_noise, probe_targets
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.options import non_negative, positive_int
from gradcam_kit.types import Evidence, LayerCapture


def smooth_grad_cam_plus_plus_weights(
    activations: Float[Tensor, "n k *s"], gradients: Float[Tensor, "samples n k *s"]
) -> Float[Tensor, "n k *one"]:
    r"""Grad-CAM++ with averaged powers of the gradients over noisy inputs and the activations of the clean one.

    $\alpha = \overline{G^2} / (2\,\overline{G^2} + \sum_s A\,\overline{G^3})$,
    $w_k = \sum_s \alpha\,\mathrm{ReLU}(\overline{G})$; a denominator of exactly 0 counts as 1.
    The order of power and mean could not be confirmed against the paper.
    """
    # The largest gradient is taken out, so that squares and cubes neither vanish nor overflow.
    axes = (0, *range(2, gradients.ndim))
    scale = gradients.abs().amax(dim=axes, keepdim=True)[0]
    scale = scale.where(scale > 0, 1)
    scaled = gradients / scale
    squares, cubes = (scaled**2).mean(0), (scaled**3).mean(0)
    denominator = 2 * squares + scale * spatial_sum(activations) * cubes
    alpha = squares / denominator.where(denominator != 0, scale**-2)
    return spatial_sum(alpha * gradients.mean(0).clamp(min=0))


class SmoothGradCAMPlusPlus(BaseCAM, name="smooth-grad-cam++"):
    """Grad-CAM++ with gradients averaged over noisy copies of the input; same seed, same map.

    Args:
        samples: noisy copies (torch-cam's default).
        std: of the Gaussian noise, in units of the normalized input (torch-cam's default).
        seed: of the noise, of which all images get the same draw.
    """

    needs = Evidence.PROBE
    cost = "F + samples (F + B)"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        samples: int = 4,
        std: float = 0.3,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.samples = positive_int("samples", samples)
        self.std, self.seed = non_negative("std", std), seed

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """All noisy copies in one batch."""
        noise = self.std * gaussian_noise(self.samples, layer.images, self.seed)
        _, gradients = probe_targets(layer, [layer.images + draw for draw in noise])
        maps = [
            torch.einsum(
                "nk...,nk->n...",
                layer.activations,
                smooth_grad_cam_plus_plus_weights(layer.activations, own).flatten(1),
            )
            for own in gradients
        ]
        return torch.stack(maps, 1) if layer.scores is not None and layer.scores.ndim == 2 else maps[0]
