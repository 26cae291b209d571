"""Scores of the image masked by its map: average drop, increase, gain, coherency, ADCC.

Y is the probability of the explained class for the image, and O is its probability for the image times the map. The
product is taken in the units of the images: if they are normalized, masked regions become the mean color of the
training data, not black. Scores outside [0, 1] are not probabilities, so shares of such scores are undefined. Several
metrics need Y and O (`masked_scores`) and the heatmaps of the masked images (`masked_heatmaps`). A `MetricInput`
computes them once; a metric called without them computes its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.functional import normalize
from gradcam_kit.metrics import rows
from gradcam_kit.metrics.checks import check_heatmaps, degenerate, improbable, usable
from gradcam_kit.metrics.registry import Explain, metric
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.metrics.rows import score_settings
from gradcam_kit.similarity import broken, pearson
from gradcam_kit.types import Rescore

Scores = tuple[Tensor, Tensor]

_MASKING = {"masking": "image * map, in the units of the images"}
_CLAMP = 1e-7


@metric(
    "average-drop",
    better="lower",
    cost="2 F",
    paper="Average drop: Chattopadhay et al., WACV 2018, https://arxiv.org/abs/1710.11063.",
)
def average_drop(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    *,
    masked_scores: Scores | None = None,
) -> MetricResult:
    """Return the lost share of the score in percent: 100 max(0, Y - O) / Y, relative to each image's own score.

    A map of ones has the best value, so the metric is meaningless alone: see `BASELINES`.
    """
    before, after = masked_scores or rows.masked_scores(heatmaps, images, rescore)
    values = 100 * (before - after).clamp(min=0) / before.clamp(min=_CLAMP)
    return _of_masked(values, heatmaps, rescore, before=before, after=after)


@metric(
    "average-increase",
    better="higher",
    cost="2 F",
    paper="Average increase: Chattopadhay et al., WACV 2018, https://arxiv.org/abs/1710.11063.",
)
def average_increase(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    *,
    masked_scores: Scores | None = None,
) -> MetricResult:
    """Return 100 if the score rises (Y < O), else 0. The mean is the percentage of images whose score rises."""
    before, after = masked_scores or rows.masked_scores(heatmaps, images, rescore)
    values = (100.0 * (before < after)).where(before.isfinite() & after.isfinite(), float("nan"))
    return _of_masked(values, heatmaps, rescore, before=before, after=after)


@metric(
    "average-gain",
    better="higher",
    cost="2 F",
    paper="Average gain: Zhang et al. 2024 (Opti-CAM), https://arxiv.org/abs/2301.07002.",
)
def average_gain(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    *,
    masked_scores: Scores | None = None,
) -> MetricResult:
    """Return the gained share of the missing score, in percent: 100 max(0, O - Y) / (1 - Y); 0 where Y is 1."""
    before, after = masked_scores or rows.masked_scores(heatmaps, images, rescore)
    missing = 1 - before
    values = 100 * (after - before).clamp(min=0) / missing.where(missing != 0, 1)
    return _of_masked(values, heatmaps, rescore, before=before, after=after)


@metric(
    "coherency",
    better="higher",
    cost="E",
    paper="Coherency: Poppi et al., CVPRW 2021, https://arxiv.org/abs/2104.10252.",
)
def coherency(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    explain: Explain,
    rescore: Rescore | None = None,
    *,
    masked_heatmaps: Float[Tensor, "n *t"] | None = None,
) -> MetricResult:
    """Return the similarity of the masked image's map to the image's map: (Pearson(L(L * x), L) + 1) / 2 in [0, 1].

    If one of the maps is constant, the correlation is undefined, so the value is 0 and the image is flagged. `rescore`
    is used only to record the origin of the classes.
    """
    again = explain(rows.masked(heatmaps, images)) if masked_heatmaps is None else masked_heatmaps
    check_heatmaps(again, images, within=False)
    flags = degenerate(heatmaps)
    for flag, holds in degenerate(again).items():
        flags[flag] = flags[flag] | holds
    values = ((pearson(heatmaps, again) + 1) / 2).masked_fill(flags[flag], 0)
    settings = {"classes": score_settings(rescore)["classes"], **_MASKING}
    return measured(values.masked_fill(broken(heatmaps), float("nan")), flags, settings)


@metric(
    "adcc-complexity",
    better="lower",
    paper="Complexity of ADCC: Poppi et al., CVPRW 2021, https://arxiv.org/abs/2104.10252.",
)
def adcc_complexity(heatmaps: Float[Tensor, "n *t"]) -> MetricResult:
    """Return the mean of the min-max normalized map in [0, 1], which measures how much of the image is highlighted.

    The complexity of Bhatt et al. is a different metric, `entropy`.
    """
    values = normalize(usable(heatmaps)).flatten(1).mean(1)
    return measured(values.masked_fill(broken(heatmaps), float("nan")), degenerate(heatmaps))


@metric(
    "adcc",
    better="higher",
    cost="2 F + E",
    paper="ADCC: Poppi et al., CVPRW 2021, https://arxiv.org/abs/2104.10252.",
)
def adcc(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    explain: Explain,
    *,
    masked_scores: Scores | None = None,
    masked_heatmaps: Float[Tensor, "n *t"] | None = None,
) -> MetricResult:
    """Combine average drop, coherency and complexity: harmonic mean 3 / (1/Coh + 1/(1 - Com) + 1/(1 - AD)).

    The result is 0 if a term of the mean is 0. `details` contains the components. For the ADCC of the components' means
    over a data set, see `adcc_of_means`.
    """
    drop = average_drop(heatmaps, images, rescore, masked_scores=masked_scores)
    coherent = coherency(heatmaps, images, explain, masked_heatmaps=masked_heatmaps)
    simple = adcc_complexity(heatmaps)
    parts = {"coherency": coherent.values, "complexity": simple.values, "average_drop": drop.values / 100}
    flags = {flag: coherent.status == int(flag) for flag in degenerate(heatmaps)}
    return measured(adcc_of_means(**parts), flags, {**drop.settings}, parts)


def adcc_of_means(
    coherency: Float[Tensor, "*n"], complexity: Float[Tensor, "*n"], average_drop: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Apply the formula of ADCC to components in [0, 1]. Papers apply it to the means over the data set."""
    return harmonic_mean(coherency, 1 - complexity, 1 - average_drop)


def harmonic_mean(*parts: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the harmonic mean of the parts. It is 0 if a part is 0, which is its limit as the part goes to 0."""
    return len(parts) / torch.stack([1 / part for part in parts]).sum(0)


def _of_masked(values: Tensor, heatmaps: Tensor, rescore: Rescore, **details: Tensor) -> MetricResult:
    """Return the result of a masking metric, NaN where a score among `details` is not a probability."""
    undefined = broken(heatmaps) | improbable(torch.stack([*details.values()], 1))
    values = values.masked_fill(undefined, float("nan"))
    return measured(values, degenerate(heatmaps), {**score_settings(rescore), **_MASKING, "clamp": _CLAMP}, details)
