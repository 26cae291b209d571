"""IS-CAM: Naidu et al. 2020, https://arxiv.org/abs/2010.03023."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import mul
from typing import Literal, get_args

from torch import Tensor

from gradcam_kit.methods.score_cam import ScoreCAM
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.types import LayerCapture

Ladder = Literal["linear", "printed", "cumulative"]


def ladder_factors(samples: int, ladder: Ladder = "linear") -> list[float]:
    r"""Return the brightness of each step i = 1 ... N.

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
    r"""Average Score-CAM's scores along a path to the masked image: $s_k = \mathrm{mean}_i\, y(c_i\, x \odot M_k)$.

    For scores that saturate in the fully bright image. The path multiplies the cost of Score-CAM; the options of
    Score-CAM apply too, `channels` above all.

    Args:
        samples: steps of the path (torch-cam's default).
        ladder: the factors $c_i$: "linear", "printed" or "cumulative", see `ladder_factors`.

    Example:
        >>> from gradcam_kit import ISCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> ISCAM(load_demo_model(), "layer4", samples=2, channels=4)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    cost = "F + samples k R"

    samples: int = 10
    ladder: Ladder = "linear"

    def check_options(self) -> None:
        """Raise an error for fewer than one sample, or an unknown ladder."""
        super().check_options()
        self.samples = positive_int("samples", self.samples)
        one_of("ladder", self.ladder, get_args(Ladder))

    def mask_changes(self, layer: LayerCapture) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return one factor for each pass."""
        return [partial(mul, factor) for factor in ladder_factors(self.samples, self.ladder)]
