"""Curves of the score while positions are removed or restored in the order of the map.

Deletion and insertion: Petsiuk et al., BMVC 2018 (RISE), https://arxiv.org/abs/1806.07421. Symmetric relevance gain:
Blücher et al., TMLR 2024, https://arxiv.org/abs/2401.06654.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.metrics.checks import check_heatmaps, degenerate, usable
from gradcam_kit.metrics.ordering import Order, unordered
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.replacement import Fill, Replacement, replacement
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.metrics.rows import score_grid, score_settings
from gradcam_kit.options import positive_int
from gradcam_kit.types import Rescore

_PAPER = "{}: Petsiuk et al., BMVC 2018 (RISE), https://arxiv.org/abs/1806.07421."


@metric("deletion", better="lower", cost="(steps + 1) F", paper=_PAPER.format("Deletion"))
def deletion(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    steps: int = 224,
    baseline: float | Fill = 0.0,
    batch_size: int = 64,
) -> MetricResult:
    """Return the area under the score over the fraction of removed positions, with the most relevant removed first.

    The area is computed with the trapezoid rule on the actual fractions, so a shorter last step contributes less. The
    curve, from the unchanged image to the image without any of its positions, is `details["curve"]`.

    Args:
        heatmaps: maps in [0, 1]; only the order of their values matters.
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the baseline "noise".
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        steps: number of equal steps into which all positions are divided (the last may be smaller); the paper uses 224
            at 224 x 224.
        baseline: the replacement of removed positions: a number in the units of the images (0 is the mean color if they
            are normalized), "mean", "blur", "noise" or "inpaint", see `replacement`.
        batch_size: maximum number of changed images in memory at once.
    """
    check_heatmaps(heatmaps, images)
    return _curve(heatmaps, images, replacement(images, baseline, seed, identities), rescore, steps, batch_size)


@metric("insertion", better="higher", cost="(steps + 1) F", paper=_PAPER.format("Insertion"))
def insertion(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    steps: int = 224,
    baseline: float | Fill = "blur",
    kernel: int = 11,
    sigma: float = 5.0,
    batch_size: int = 64,
) -> MetricResult:
    """Return the area under the score over the fraction of restored positions, with the most relevant restored first.

    The curve starts from an image without any of its positions, which is blurred by default, and is
    `details["curve"]`.

    Args:
        heatmaps: maps in [0, 1]; only the order of their values matters.
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the baseline "noise".
        identities: an integer per image, from which its noise is derived; None = derived from the values of the image.
        steps: number of equal steps into which all positions are divided (the last may be smaller); the paper uses 224
            at 224 x 224.
        baseline: replaces a position before it is restored, as in `deletion`; the paper uses "blur".
        kernel: size of the Gaussian window of the blur in positions, odd.
        sigma: standard deviation of the blur, in positions.
        batch_size: maximum number of changed images in memory at once.
    """
    check_heatmaps(heatmaps, images)
    start = replacement(images, baseline, seed, identities, kernel=kernel, sigma=sigma)
    return _curve(heatmaps, images, start, rescore, steps, batch_size, gives_back=True)


@metric(
    "srg",
    better="higher",
    cost="(2 steps + 2) F",
    paper="Symmetric relevance gain: Blücher et al., TMLR 2024, https://arxiv.org/abs/2401.06654.",
)
def symmetric_relevance_gain(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    steps: int = 224,
    baseline: float | Fill = 0.0,
    batch_size: int = 64,
) -> MetricResult:
    """Return the area between two deletion curves: least relevant first (LeRF) minus most relevant first (MoRF).

    The area lies in [-1, 1] for probabilities, and 0 is expected for an uninformative order. Effects of the baseline
    that are the same for every order cancel, so rankings of methods depend less on the baseline than with either curve
    alone. `details` contains both curves.

    Args:
        heatmaps: maps in [0, 1]; only the order of their values matters.
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the baseline "noise", as in `deletion`.
        identities: as in `deletion`.
        steps: as in `deletion`.
        baseline: as in `deletion`.
        batch_size: as in `deletion`.
    """
    check_heatmaps(heatmaps, images)
    found = replacement(images, baseline, seed, identities)
    morf = _curve(heatmaps, images, found, rescore, steps, batch_size)
    lerf = _curve(heatmaps, images, found, rescore, steps, batch_size, least_first=True)
    details = {
        "morf": morf.details["curve"],
        "lerf": lerf.details["curve"],
        "ties": morf.details["ties"] + lerf.details["ties"],
    }
    settings = {**morf.settings, "order": "least relevant first - most relevant first"}
    return measured(lerf.values - morf.values, degenerate(heatmaps), settings, details)


def _curve(
    heatmaps: Tensor,
    images: Tensor,
    found: Replacement,
    rescore: Rescore,
    steps: int,
    batch_size: int,
    *,
    gives_back: bool = False,
    least_first: bool = False,
) -> MetricResult:
    """Score the images while the baseline replaces their positions, most relevant first, or last with `least_first`.

    With `gives_back`, positions of the image are restored instead.
    """
    total = math.prod(heatmaps.shape[1:])
    stride = math.ceil(total / positive_int("steps", steps))
    cuts = [min(count, total) for count in range(0, total + stride, stride)]
    counts = (torch.arange(len(cuts), device=heatmaps.device) * stride).clamp(max=total)
    order = Order.of(usable(heatmaps))

    def build(index: Tensor, step: Tensor) -> Tensor:
        place, count = order.place[index], counts[step].reshape(-1, *(1 for _ in heatmaps.shape[1:]))
        first = place >= total - count if least_first else place < count
        return found.fill(index, ~first if gives_back else first)

    curve = score_grid(rescore, images, len(cuts), build, batch_size)
    area = torch.trapezoid(curve, (counts / total).to(curve.dtype), dim=1)
    split = [total - count for count in cuts] if least_first else cuts
    settings: dict[str, Any] = {"steps": len(cuts) - 1, "positions_per_step": stride}
    return measured(
        area.masked_fill(unordered(heatmaps), torch.nan),
        degenerate(heatmaps),
        {**score_settings(rescore), **found.settings, **settings},
        {"curve": curve, "ties": order.split_ties(split)},
    )
