"""Smooth Grad-CAM++: Omeiza et al. 2019, https://arxiv.org/abs/1908.01224."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import spatial_sum
from gradcam_kit.methods.arithmetic.perturbations import gaussian_noise, probe_targets, stack_targets
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.options import non_negative, positive_int
from gradcam_kit.types import Evidence, LayerCapture


def smooth_grad_cam_plus_plus_weights(
    activations: Float[Tensor, "n k *s"], gradients: Float[Tensor, "samples n k *s"]
) -> Float[Tensor, "n k *one"]:
    r"""Return Grad-CAM++'s weights from mean powers of the gradients at noisy inputs and from clean activations.

    $\alpha = \overline{G^2} / (2\,\overline{G^2} + \sum_s A\,\overline{G^3})$,
    $w_k = \sum_s \alpha\,\mathrm{ReLU}(\overline{G})$; a denominator of exactly 0 is replaced by 1. The order of power
    and mean could not be confirmed against the paper.
    """
    # Divide by the largest gradient, so that squares and cubes neither underflow nor overflow.
    axes = (0, *range(2, gradients.ndim))
    scale = gradients.abs().amax(dim=axes, keepdim=True)[0]
    scale = scale.where(scale > 0, 1)
    scaled = gradients / scale
    squares, cubes = (scaled**2).mean(0), (scaled**3).mean(0)
    denominator = 2 * squares + scale * spatial_sum(activations) * cubes
    alpha = squares / denominator.where(denominator != 0, scale**-2)
    return spatial_sum(alpha * gradients.mean(0).clamp(min=0))


class SmoothGradCAMPlusPlus(BaseCAM, name="smooth-grad-cam++"):
    """Compute Grad-CAM++ from gradients averaged over noisy copies of the input.

    Use this method for models whose gradients are noisy. The same seed gives the same map. To smooth another method,
    wrap it: `Smooth(LayerCAM(model))`.

    Args:
        samples: number of noisy copies; the default is torch-cam's.
        std: standard deviation of the Gaussian noise, in units of the normalized input, at least 0; the default is
            torch-cam's.
        seed: seed of the noise; all images get the same draws.

    Example:
        >>> from gradcam_kit import SmoothGradCAMPlusPlus
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> SmoothGradCAMPlusPlus(load_demo_model(), "layer4", samples=2, std=0.1)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.PROBE
    cost = "F + samples (F + B)"

    samples: int = 4
    std: float = 0.3
    seed: int = 0

    def check_options(self) -> None:
        """Raise OptionError for fewer than one sample, or a negative `std`."""
        self.samples, self.std = positive_int("samples", self.samples), non_negative("std", self.std)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the maps from all noisy copies in one batch."""
        noise = self.std * gaussian_noise(self.samples, layer.images, self.seed)
        _, gradients = probe_targets(layer, [layer.images + draw for draw in noise])
        weights = [smooth_grad_cam_plus_plus_weights(layer.activations, own).flatten(1) for own in gradients]
        return stack_targets(layer, [torch.einsum("nk...,nk->n...", layer.activations, own) for own in weights])
