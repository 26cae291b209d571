"""SS-CAM: Wang et al. 2020, https://arxiv.org/abs/2006.14255."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.functional import widen
from gradcam_kit.methods.arithmetic.perturbations import check_std, gaussian_noise
from gradcam_kit.methods.score_cam import ScoreCAM, ScoreOptions
from gradcam_kit.options import positive_int
from gradcam_kit.types import LayerCapture


class SSCAM(ScoreCAM, name="ss-cam"):
    r"""Score-CAM with scores averaged over noisy masks: $s_k = \mathrm{mean}_i\, y(x \odot (M_k + \epsilon_i))$.

    The noise is added to the normalized masks, also to the empty mask of a constant channel. The samples multiply the
    price of Score-CAM; `std` is large for masks in [0, 1]. Both defaults are torch-cam's.

    Args:
        samples: draws of noise. All channels and images get the same ones.
        std: of the Gaussian noise, in units of the masks.
        seed: of the noise.
    """

    cost = "F + samples k R"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        samples: int = 35,
        std: float = 2.0,
        seed: int = 0,
        **options: Unpack[ScoreOptions],
    ) -> None:
        super().__init__(model, target_layers, **options)
        positive_int("samples", samples)
        check_std(std)
        self.samples, self.std, self.seed = samples, std, seed

    def mask_changes(self, layer: LayerCapture) -> Sequence[Callable[[Tensor], Tensor]]:
        """One draw of noise for each pass."""
        noise = self.std * gaussian_noise(self.samples, widen(layer.images[:, :1]), self.seed)[:, 0]
        return [partial(torch.add, draw) for draw in noise]

    def score(self, layer: LayerCapture, activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As for Score-CAM, whose zero input gets no noise."""
        scores, constant, zero_input = super().score(layer, activations)
        if self.weighting == "relu":
            everyone = torch.arange(len(activations), device=activations.device)
            zero_input = self.rows(layer)(torch.zeros_like(layer.images), everyone)
        return scores, constant, zero_input
