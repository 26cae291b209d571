"""Random-CAM: random channel weights, a baseline for every comparison."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import move
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture


class RandomCAM(BaseCAM, name="random-cam"):
    r"""Weight channels by one draw of U(-1, 1) that all samples and classes share: $\sum_k r_k A_k$.

    This is a baseline for comparisons, not an explanation. A method that does not score better than Random-CAM shows
    nothing about the class.

    Args:
        seed: seed of the draw, which is made on the host so that every device gets the same weights.

    Example:
        >>> from gradcam_kit import RandomCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> model, images = load_demo_model(), collate([draw(0)]).images
        >>> bool((RandomCAM(model, "layer4", seed=1)(images) == RandomCAM(model, "layer4", seed=2)(images)).all())
        False
    """

    needs = Evidence.NONE
    class_agnostic = True
    cost = "F"

    seed: int = 0

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *one"]:
        """Return the random weights, one per channel."""
        n, k, *positions = layer.activations.shape
        generator = torch.Generator("cpu").manual_seed(self.seed)
        drawn = 2 * torch.rand(k, generator=generator, dtype=torch.float32, device="cpu") - 1
        drawn = move(drawn, layer.activations.device, layer.activations.dtype)
        return drawn.view(1, k, *(1 for _ in positions)).expand(n, -1, *(1 for _ in positions))
