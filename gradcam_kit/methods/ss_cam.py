"""SS-CAM: Wang et al. 2020, https://arxiv.org/abs/2006.14255."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gradcam_kit.functional import at_least_float32
from gradcam_kit.methods.arithmetic.perturbations import gaussian_noise
from gradcam_kit.methods.score_cam import ScoreCAM
from gradcam_kit.options import non_negative, positive_int
from gradcam_kit.types import LayerCapture


class SSCAM(ScoreCAM, name="ss-cam"):
    r"""Average Score-CAM's scores over noisy masks: $s_k = \mathrm{mean}_i\, y(x \odot (M_k + \epsilon_i))$.

    The map is smoother than that of Score-CAM but seldom worth its cost, because `samples` multiplies the number of
    passes. The options of Score-CAM are also available, in particular `channels`, which reduces the cost. The noise is
    added to the normalized masks, including the empty mask of a constant channel. The default of `std` is large for
    masks in [0, 1]; the defaults of `samples` and `std` are torch-cam's.

    Args:
        samples: number of draws of noise, which all channels and images share.
        std: standard deviation of the Gaussian noise, in units of the masks, at least 0.
        seed: seed of the noise.

    Example:
        >>> from gradcam_kit import SSCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> SSCAM(load_demo_model(), "layer4", samples=2, std=0.5, channels=4)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    cost = "F + samples k R"

    samples: int = 35
    std: float = 2.0
    seed: int = 0

    def check_options(self) -> None:
        """Raise OptionError for fewer than one sample, or a negative `std`."""
        super().check_options()
        self.samples, self.std = positive_int("samples", self.samples), non_negative("std", self.std)

    def mask_changes(self, layer: LayerCapture) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return a function for each pass, which adds its draw of noise to the masks."""
        noise = self.std * gaussian_noise(self.samples, at_least_float32(layer.images[:, :1]), self.seed)[:, 0]
        return [partial(torch.add, draw) for draw in noise]

    def score(self, layer: LayerCapture, activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score the channels as Score-CAM does. No noise is added to the zero input."""
        scores, constant, zero_input = super().score(layer, activations)
        if self.weighting == "relu":
            sample_index = torch.arange(len(activations), device=activations.device)
            zero_input = self.rows(layer)(torch.zeros_like(layer.images), sample_index)
        return scores, constant, zero_input
