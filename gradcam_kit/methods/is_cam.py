"""IS-CAM: Naidu et al. 2020, https://arxiv.org/abs/2010.03023."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import mul
from typing import Literal, get_args

from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers
from gradcam_kit.methods.score_cam import ScoreCAM, ScoreOptions
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import LayerCapture

Ladder = Literal["linear", "printed", "cumulative"]


def ladder_factors(samples: int, ladder: Ladder = "linear") -> list[float]:
    r"""The brightness of each step i = 1 ... N.

    Args:
        samples: N.
        ladder: "linear" $i/N$ stays in [0, 1]. "printed" is the sum as the paper prints it, $\sum_{j<i} j/N$, and
            "cumulative" torch-cam's, $\sum_{j \le i} j/N$; with N = 10 they brighten the image 4.5 and 5.5 times.
    """
    steps = range(1, samples + 1)
    if ladder == "linear":
        return [i / samples for i in steps]
    return [i * (i - 1 if ladder == "printed" else i + 1) / (2 * samples) for i in steps]


class ISCAM(ScoreCAM, name="is-cam"):
    r"""Score-CAM with scores averaged along a path to the masked image: $s_k = \mathrm{mean}_i\, y(c_i\, x \odot M_k)$.

    Args:
        samples: steps of the path; they multiply the price of Score-CAM (torch-cam's default).
        ladder: the factors $c_i$: "linear", "printed" or "cumulative", see `ladder_factors`.
    """

    cost = "F + samples k R"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        samples: int = 10,
        ladder: Ladder = "linear",
        **options: Unpack[ScoreOptions],
    ) -> None:
        super().__init__(model, target_layers, **options)
        positive_int("samples", samples)
        self.samples = samples
        self.ladder: Ladder = one_of("ladder", ladder, get_args(Ladder))

    def mask_changes(self, layer: LayerCapture) -> Sequence[Callable[[Tensor], Tensor]]:
        """One factor for each pass."""
        return [partial(mul, factor) for factor in ladder_factors(self.samples, self.ladder)]
