"""Deletion and insertion: Petsiuk et al., BMVC 2018 (RISE), https://arxiv.org/abs/1806.07421."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import OptionError
from gradcam_kit.functional import at_least_float32, gaussian_blur
from gradcam_kit.metrics.checks import check_heatmaps, degenerate, usable
from gradcam_kit.metrics.ordering import Order, unordered
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.metrics.rows import score_grid, score_settings, spread
from gradcam_kit.options import finite_number, positive, positive_int
from gradcam_kit.types import Rescore

_PAPER = "{}: Petsiuk et al., BMVC 2018 (RISE), https://arxiv.org/abs/1806.07421."


@metric("deletion", better="lower", cost="(steps + 1) F", paper=_PAPER.format("Deletion"))
def deletion(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    *,
    steps: int = 224,
    baseline: float = 0.0,
    batch_size: int = 64,
) -> MetricResult:
    """The area under the score while positions are removed, the most relevant first; over the removed fraction.

    The trapezoid rule on the true fractions: a last step that is shorter counts for less. The untouched image and the
    empty one are part of the curve, which is `details["curve"]`.

    Args:
        heatmaps: in [0, 1]; only their order matters.
        images: as the model gets them.
        rescore: the probability of the explained class.
        steps: into which all positions are divided, evenly but for the last; the paper's are 224 at 224 x 224.
        baseline: what replaces a position, in the units of the images: 0 is the mean color where they are normalized.
        batch_size: the most changed images that exist at once.
    """
    check_heatmaps(heatmaps, images)
    end = torch.full_like(images[:1], finite_number("baseline", baseline)).expand_as(images)
    return _curve(heatmaps, images, (images, end), rescore, steps, batch_size, {"baseline": f"value {baseline:g}"})


@metric("insertion", better="higher", cost="(steps + 1) F", paper=_PAPER.format("Insertion"))
def insertion(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    *,
    steps: int = 224,
    kernel: int = 11,
    sigma: float = 5.0,
    batch_size: int = 64,
) -> MetricResult:
    """The area under the score while positions of the blurred image get their own values back, as `deletion`.

    Args:
        heatmaps: in [0, 1]; only their order matters.
        images: as the model gets them.
        rescore: the probability of the explained class.
        steps: into which all positions are divided, evenly but for the last; the paper's are 224 at 224 x 224.
        kernel: positions of the Gaussian window of the blur, an odd number.
        sigma: of the blur, in positions.
        batch_size: the most changed images that exist at once.
    """
    check_heatmaps(heatmaps, images)
    positive("sigma", sigma)
    if positive_int("kernel", kernel) % 2 == 0:
        raise OptionError(f"kernel is {kernel}; expected an odd number of positions, so that the window has a middle")
    with torch.autocast(images.device.type, enabled=False):
        start = gaussian_blur(at_least_float32(images), kernel, sigma).to(images.dtype)
    baseline = {"baseline": f"Gaussian blur, kernel {kernel}, sigma {sigma:g}, mirrored borders"}
    return _curve(heatmaps, images, (start, images), rescore, steps, batch_size, baseline)


def _curve(
    heatmaps: Tensor,
    images: Tensor,
    versions: tuple[Tensor, Tensor],
    rescore: Rescore,
    steps: int,
    batch_size: int,
    settings: dict[str, str],
) -> MetricResult:
    """Score the way from one version of the images to the other, in the order of the maps."""
    start, end = versions
    total = math.prod(heatmaps.shape[1:])
    stride = math.ceil(total / positive_int("steps", steps))
    cuts = [min(count, total) for count in range(0, total + stride, stride)]
    counts = (torch.arange(len(cuts), device=heatmaps.device) * stride).clamp(max=total)
    order = Order.of(usable(heatmaps))

    def build(index: Tensor, step: Tensor) -> Tensor:
        changed = order.place[index] < counts[step].reshape(-1, *(1 for _ in heatmaps.shape[1:]))
        return torch.where(spread(changed), end[index], start[index])

    curve = score_grid(rescore, images, len(cuts), build, batch_size)
    area = torch.trapezoid(curve, (counts / total).to(curve.dtype), dim=1)
    return measured(
        area.masked_fill(unordered(heatmaps), torch.nan),
        degenerate(heatmaps),
        {**score_settings(rescore), **settings, "steps": len(cuts) - 1, "positions_per_step": stride},
        {"curve": curve, "ties": order.split_ties(cuts)},
    )
