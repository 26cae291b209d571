"""Correlations of the map with the fall of the score, over random sets of positions and over groups by relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from gradcam_kit.draws import uniform
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import move
from gradcam_kit.metrics.checks import check_heatmaps, check_scores, degenerate, usable
from gradcam_kit.metrics.draws import identities_of
from gradcam_kit.metrics.ordering import Order
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.replacement import Fill, channel_noise, replacement
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.metrics.rows import sample_index, score_grid, score_settings, spread
from gradcam_kit.options import finite_number, positive_int
from gradcam_kit.similarity import broken, pearson, spearman
from gradcam_kit.types import Rescore

FRACTIONS = (0.01, 0.1, 0.25, 0.5, 0.8)
_SUBSET = 224
_SUBSET_SAID = "224, or a tenth of the positions for images below 2240 positions"
_STREAM = 1 << 17
"""Draw i of an image uses stream _STREAM + i."""


@metric(
    "sensitivity-n",
    better="higher",
    cost="(fractions samples + 1) F",
    paper="Sensitivity-n: Ancona et al., ICLR 2018, https://arxiv.org/abs/1711.06104.",
)
def sensitivity_n(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    samples: int = 50,
    baseline: float | Fill = 0.0,
    batch_size: int = 64,
) -> MetricResult:
    r"""Correlate $\sum_{i \in S} L_i$ with $y(x) - y(x_S)$ over random sets S of n positions, and average over n.

    $x_S$ is the image without the positions in S. The scale of a class activation map is arbitrary, so the metric is a
    correlation, as in the paper's figures, and does not test equality. If all sets of one size change the score
    equally, their correlation is undefined. It is then left out of the mean, and is NaN in `details["correlations"]`.

    Args:
        heatmaps: maps in [0, 1].
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the sets.
        identities: an integer per image, from which its sets are derived; None = derived from the values of the image.
        fractions: the values of n as shares of the positions, each above 0 and below 1; a set has at least one
            position.
        samples: number of sets of each size, at least 2.
        baseline: the replacement of removed positions, as in `deletion`.
        batch_size: maximum number of changed images in memory at once.

    Raises:
        OptionError: no fractions, a fraction outside (0, 1), or a single set.
    """
    check_heatmaps(heatmaps, images)
    given = [finite_number("a fraction", fraction) for fraction in fractions]
    if not given or min(given) <= 0 or max(given) >= 1:
        raise OptionError(f"fractions are {tuple(fractions)}; expected at least one, each above 0 and below 1")
    total = math.prod(heatmaps.shape[1:])
    counts = [max(1, round(fraction * total)) for fraction in given]
    found, settings = _over_subsets(heatmaps, images, rescore, seed, identities, counts, samples, baseline, batch_size)
    values = found.nanmean(1).masked_fill(broken(heatmaps), torch.nan)
    settings = {**settings, "fractions": tuple(given)}
    return measured(values, degenerate(heatmaps), settings, {"correlations": found})


@metric(
    "faithfulness-correlation",
    better="higher",
    cost="(samples + 1) F",
    paper="Faithfulness correlation: Bhatt et al., IJCAI 2020, https://arxiv.org/abs/2005.00631.",
)
def faithfulness_correlation(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    subset: int | None = None,
    samples: int = 100,
    baseline: float | Fill = 0.0,
    batch_size: int = 64,
) -> MetricResult:
    r"""Correlate $\sum_{i \in S} L_i$ with $y(x) - y(x_S)$ over random sets S of one size.

    Args:
        heatmaps: maps in [0, 1].
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the sets.
        identities: an integer per image, from which its sets are derived; None = derived from the values of the image.
        subset: number of positions in a set; None = 224, or a tenth of the positions if an image has fewer than 2240.
        samples: number of sets, at least 2.
        baseline: the replacement of removed positions, as in `deletion`.
        batch_size: maximum number of changed images in memory at once.

    Raises:
        OptionError: a subset of all positions or more, or a single set.
    """
    check_heatmaps(heatmaps, images)
    total = math.prod(heatmaps.shape[1:])
    count = max(1, min(_SUBSET, total // 10)) if subset is None else positive_int("subset", subset)
    if count >= total:
        raise OptionError(f"subset is {count}, but the maps have only {total} positions; expected 1 to {total - 1}")
    found, settings = _over_subsets(heatmaps, images, rescore, seed, identities, [count], samples, baseline, batch_size)
    values = found[:, 0].masked_fill(broken(heatmaps), torch.nan)
    return measured(values, degenerate(heatmaps), {**settings, "subset": subset or _SUBSET_SAID})


@metric(
    "monotonicity-correlation",
    better="higher",
    cost="(steps samples + 1) F",
    paper="Monotonicity: Nguyen and Martinez 2020, https://arxiv.org/abs/2007.07584.",
)
def monotonicity_correlation(
    heatmaps: Float[Tensor, "n *t"],
    images: Float[Tensor, "n c *t"],
    rescore: Rescore,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    *,
    steps: int = 28,
    samples: int = 8,
    batch_size: int = 64,
) -> MetricResult:
    r"""Rank-correlate a group's mean relevance with $E[(y(x) - y(x_G))^2]$, the effect of randomizing the group.

    Positions are divided into equal groups in the order of the map; the last group may be smaller. In $x_G$ the values
    of a group are draws from U(smallest, largest) of their channel. This is not the monotonicity of Arya et al. (2019),
    which tests whether the score rises with every added position.

    Args:
        heatmaps: maps in [0, 1].
        images: the model's input.
        rescore: function that returns the probability of the explained class for changed images.
        seed: seed of the draws.
        identities: an integer per image, from which its draws are derived; None = derived from the values of the image.
        steps: number of groups, at least 2.
        samples: number of draws for each group.
        batch_size: maximum number of changed images in memory at once.

    Raises:
        OptionError: a single group.
    """
    check_heatmaps(heatmaps, images)
    total = math.prod(heatmaps.shape[1:])
    stride = math.ceil(total / positive_int("steps", steps))
    groups = math.ceil(total / stride)
    if groups < 2:
        raise OptionError(f"steps is {steps} for {total} positions, which is one group; expected at least two groups")
    positive_int("samples", samples)
    own, order = identities_of(identities, images), Order.of(usable(heatmaps))

    def build(index: Tensor, step: Tensor) -> Tensor:
        group = (step // samples).reshape(-1, *(1 for _ in heatmaps.shape[1:]))
        unknown = channel_noise(images[index], own[index], seed, _STREAM + step % samples)
        return torch.where(spread(order.place[index] // stride == group), unknown, images[index])

    after = score_grid(rescore, images, groups * samples, build, batch_size).double()
    before = check_scores(rescore(images, sample_index(images)), len(images)).double()
    effects = (before[:, None] - after).square().unflatten(1, (groups, samples)).mean(2)
    ordered = pad(order.values.double(), (0, groups * stride - total)).unflatten(1, (groups, stride)).sum(2)
    sizes = (total - torch.arange(groups, device=images.device) * stride).clamp(max=stride)
    relevance = ordered / sizes
    values = spearman(relevance, effects).masked_fill(broken(heatmaps), torch.nan)
    settings = {**score_settings(rescore), "steps": groups, "samples": samples, "seed": seed}
    return measured(values, degenerate(heatmaps), settings, {"effects": effects})


def _over_subsets(
    heatmaps: Tensor,
    images: Tensor,
    rescore: Rescore,
    seed: int,
    identities: Tensor | None,
    counts: Sequence[int],
    samples: int,
    baseline: float | Fill,
    batch_size: int,
) -> tuple[Float[Tensor, "n sizes"], dict[str, object]]:
    """Correlate sums of the map with falls of the score over random sets, for each size; also return the settings."""
    if positive_int("samples", samples) < 2:
        raise OptionError("samples is 1; expected at least two sets to correlate")
    own, maps = identities_of(identities, images), usable(heatmaps)
    found = replacement(images, baseline, seed, identities)
    sums = images.new_zeros(len(images), len(counts) * samples, dtype=torch.double)
    sizes = move(torch.tensor(counts), images.device)

    def build(index: Tensor, step: Tensor) -> Tensor:
        draws = uniform(tuple(heatmaps.shape[1:]), own[index], seed, _STREAM + step).flatten(1)
        place = draws.argsort(dim=1, stable=True).argsort(dim=1)
        removed = (place < sizes[step // samples][:, None]).reshape(-1, *heatmaps.shape[1:])
        sums[index, step] = (maps[index] * removed).flatten(1).double().sum(1)
        return found.fill(index, removed)

    after = score_grid(rescore, images, sums.shape[1], build, batch_size).double()
    before = check_scores(rescore(images, sample_index(images)), len(images)).double()
    falls = (before[:, None] - after).reshape(-1, samples)
    correlations = pearson(sums.reshape(-1, samples), falls).reshape(len(images), len(counts))
    settings = {**score_settings(rescore), **found.settings, "samples": samples, "seed": seed}
    return correlations, settings
