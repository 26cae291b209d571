"""Integrated Grad-CAM: Sattarzadeh et al., ICASSP 2021, https://arxiv.org/abs/2102.07805."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import weighted_sum
from gradcam_kit.methods.arithmetic.perturbations import probe_targets, stack_targets
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import positive_int
from gradcam_kit.types import Evidence, LayerCapture


def integrated_grad_cam(
    activations: Float[Tensor, "steps n k *s"],
    gradients: Float[Tensor, "steps n k *s"],
    start: Float[Tensor, "n k *s"],
) -> Float[Tensor, "n *s"]:
    r"""Average the maps along the path $x_l$: $\mathrm{mean}_l \mathrm{ReLU}(\sum_k w_k(x_l)\,(A_k(x_l) - A_k(x_0)))$.

    The difference term and the weights (Grad-CAM's at each step) could not be confirmed against the paper.
    """
    steps = len(activations)
    differences = (activations - start).flatten(0, 1)
    maps = weighted_sum(differences, grad_cam_weights(gradients.flatten(0, 1)))
    by_step: Tensor = maps.clamp(min=0).unflatten(0, (steps, -1))
    return by_step.mean(0)


class IntegratedGradCAM(BaseCAM, name="integrated-grad-cam"):
    """Integrate Grad-CAM along the straight path from the zero input (the mean color) to the image.

    Use this method for saturated scores, whose gradient at the image itself is close to zero. Regions of the mean color
    get little or no evidence.

    Args:
        steps: number of points on the path after the zero input, the image included. Each costs a forward and a
            backward pass, as does the zero input.

    Example:
        >>> from gradcam_kit import IntegratedGradCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> IntegratedGradCAM(load_demo_model(), "layer4", steps=4)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.PROBE
    cost = "F + (steps + 1) (F + B)"

    steps: int = 20

    def check_options(self) -> None:
        """Raise OptionError for fewer than one step."""
        self.steps = positive_int("steps", self.steps)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the maps from all steps in one batch. Gradients at the start of the path are not used."""
        path = [layer.images * (step / self.steps) for step in range(self.steps + 1)]
        activations, gradients = probe_targets(layer, path)
        return stack_targets(
            layer, [integrated_grad_cam(activations[1:], own[1:], activations[0]) for own in gradients]
        )
