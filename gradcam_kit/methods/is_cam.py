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
    r"""Return the brightness factor of each step i = 1 ... N.

    Args:
        samples: number of steps N.
        ladder: "linear" is $i/N$, which does not exceed 1. "printed" is the sum that the paper prints,
            $\sum_{j<i} j/N$, and "cumulative" is that of torch-cam, $\sum_{j \le i} j/N$; with N = 10, their last steps
            multiply the brightness by 4.5 and 5.5, respectively.
    """
    steps = range(1, samples + 1)
    if ladder == "linear":
        return [i / samples for i in steps]
    return [i * (i - 1 if ladder == "printed" else i + 1) / (2 * samples) for i in steps]


class ISCAM(ScoreCAM, name="is-cam"):
    r"""Average Score-CAM's scores along a path to the masked image: $s_k = \mathrm{mean}_i\, y(c_i\, x \odot M_k)$.

    Use this method for scores that saturate at full brightness. `samples` multiplies the cost of Score-CAM. The options
    of Score-CAM are also available, in particular `channels`, which reduces the cost.

    Args:
        samples: number of steps of the path; the default is torch-cam's.
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
        """Return a function for each pass, which multiplies the masks by the brightness factor of its step."""
        return [partial(mul, factor) for factor in ladder_factors(self.samples, self.ladder)]
