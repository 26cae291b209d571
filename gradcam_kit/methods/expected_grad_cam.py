"""Expected Grad-CAM: Buono et al. 2024, https://arxiv.org/abs/2406.01274."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import (
    at_least_float32,
    gaussian_blur,
    spatial_mean,
    weighted_sum,
    without_rounding,
)
from gradcam_kit.methods.arithmetic.perturbations import gaussian_noise, probe_targets, stack_targets
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import non_negative, positive_int
from gradcam_kit.types import Evidence, LayerCapture

_KERNEL, _SIGMA = 51, 50.0


def expected_grad_cam(
    activations: Float[Tensor, "n k *s"],
    baselines: Float[Tensor, "samples n k *s"],
    gradients: Float[Tensor, "samples n k *s"],
) -> Float[Tensor, "n *s"]:
    r"""Average maps of expected gradients over baselines x', each with one point on its path to the image x.

    The map is $\mathrm{E}_{x', \alpha} \sum_k w_k(x' + \alpha (x - x'))\,(A_k(x) - A_k(x'))$ with Grad-CAM's weights
    $w_k$. If the weights are constant, as before mean pooling and a linear head, the map sums to
    $y(x) - \mathrm{E}\,y(x')$.
    """
    differences = without_rounding(activations - baselines, activations).flatten(0, 1)
    maps: Tensor = weighted_sum(differences, grad_cam_weights(gradients.flatten(0, 1)))
    by_sample: Tensor = maps.unflatten(0, (len(baselines), -1))
    return by_sample.mean(0)


class ExpectedGradCAM(BaseCAM, name="expected-grad-cam"):
    """Integrate Grad-CAM along paths from many baselines that are made from the image itself.

    Use this method for saturated scores, whose gradient at the image itself is close to zero. The map depends less on a
    single baseline than that of IntegratedGradCAM, and the same seed gives the same map. A baseline is the blurred
    image (kernel smoothing) with noise in proportion to the image's own contrast (data-aware perturbation). Each path
    contributes one sample of the integral; the samples lie at the midpoints of equal intervals. Three details could not
    be confirmed against the paper: the distribution of the baselines, the factor of the weights, and the number of
    samples.

    Args:
        samples: number of baselines, each with one point on its path; each costs two forward and two backward passes.
        std: standard deviation of the Gaussian noise, in standard deviations of the image, at least 0.
        seed: seed of the noise; all images get the same draws.

    Example:
        >>> from gradcam_kit import ExpectedGradCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> ExpectedGradCAM(load_demo_model(), "layer4", samples=2)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.PROBE
    cost = "F + 2 samples (F + B)"

    samples: int = 16
    std: float = 0.3
    seed: int = 0

    def check_options(self) -> None:
        """Raise OptionError for fewer than one sample, or a negative `std`."""
        self.samples, self.std = positive_int("samples", self.samples), non_negative("std", self.std)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the maps from all baselines and points in one batch. Gradients at the baselines are not used."""
        images = at_least_float32(layer.images)
        mean = spatial_mean(images).mean(1, keepdim=True)
        contrast = spatial_mean((images - mean) ** 2).mean(1, keepdim=True).sqrt()
        blurred = gaussian_blur(images, _KERNEL, _SIGMA)
        noise = gaussian_noise(self.samples, images, self.seed)
        baselines = [blurred + self.std * contrast * draw for draw in noise]
        points = [start.lerp(images, (i + 0.5) / self.samples) for i, start in enumerate(baselines)]
        activations, gradients = probe_targets(layer, [*baselines, *points])
        found = [
            expected_grad_cam(layer.activations, activations[: self.samples], own[self.samples :].contiguous())
            for own in gradients
        ]
        return stack_targets(layer, found)
