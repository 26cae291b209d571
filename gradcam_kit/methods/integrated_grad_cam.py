"""Integrated Grad-CAM: Sattarzadeh et al., ICASSP 2021, https://arxiv.org/abs/2102.07805."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.functional import weighted_sum
from gradcam_kit.methods.arithmetic.perturbations import probe_targets
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.methods.grad_cam import grad_cam_weights
from gradcam_kit.options import positive_int
from gradcam_kit.types import Evidence, LayerCapture


def integrated_grad_cam(
    activations: Float[Tensor, "steps n k *s"],
    gradients: Float[Tensor, "steps n k *s"],
    start: Float[Tensor, "n k *s"],
) -> Float[Tensor, "n *s"]:
    r"""Average along the path $x_l$: $\mathrm{mean}_l \mathrm{ReLU}(\sum_k w_k(x_l)\,(A_k(x_l) - A_k(x_0)))$.

    The difference term and the weights (Grad-CAM's at each step) could not be confirmed against the paper.
    """
    steps = len(activations)
    differences = (activations - start).flatten(0, 1)
    maps = weighted_sum(differences, grad_cam_weights(gradients.flatten(0, 1)))
    by_step: Tensor = maps.clamp(min=0).unflatten(0, (steps, -1))
    return by_step.mean(0)


class IntegratedGradCAM(BaseCAM, name="integrated-grad-cam"):
    """Grad-CAM integrated along the straight path from the zero input (the mean color) to the image.

    Args:
        steps: points on the path, the image included.
    """

    needs = Evidence.PROBE
    cost = "F + steps (F + B)"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        steps: int = 20,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        self.steps = positive_int("steps", steps)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """All steps in one batch; the start of the path is one more step, whose gradients are not used."""
        path = [layer.images * (step / self.steps) for step in range(self.steps + 1)]
        activations, gradients = probe_targets(layer, path)
        maps = [integrated_grad_cam(activations[1:], own[1:], activations[0]) for own in gradients]
        return torch.stack(maps, 1) if layer.scores is not None and layer.scores.ndim == 2 else maps[0]
