"""Agreement of metrics on the ranking of methods: Tomsett et al., AAAI 2020, https://arxiv.org/abs/1912.01451."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.similarity import ranks, spearman


@dataclass(frozen=True, eq=False)
class RankAgreement:
    """Agreement of metrics with each other, and of each metric with itself from image to image.

    Attributes:
        metrics: their names.
        consistency: rank correlation over the methods for each pair of metrics, mean over the images where it is
            defined; the paper's internal consistency reliability.
        counts: the images in each of these means.
        reliability: Krippendorff's alpha, per metric, of the ranks of the methods in the images: 1 if all agree, 0 by
            chance; the paper's inter-rater reliability. NaN with fewer than two images.
    """

    metrics: tuple[str, ...]
    consistency: Float[Tensor, "k k"]
    counts: Int[Tensor, "k k"]
    reliability: Float[Tensor, " k"]


def rank_agreement(scores: Mapping[str, Float[Tensor, "methods n"]], lower: Collection[str] = ()) -> RankAgreement:
    """Compare the order in which metrics put methods.

    Args:
        scores: metric -> its value for each method and image, NaN if missing. An image counts for two metrics if both
            have a value for every method.
        lower: metrics for which lower is better; their sign is flipped.

    Raises:
        OptionError: no metric, or fewer than three methods: two rankings of two methods can only agree or be opposite.
        ShapeError: metrics with different methods or images.
    """
    tables = {name: -one.double() if name in lower else one.double() for name, one in scores.items()}
    shapes = {tuple(one.shape) for one in tables.values()}
    if len(shapes) > 1:
        raise ShapeError(
            f"metrics have scores of shapes {sorted(shapes)}; expected (methods, images), the same for all"
        )
    if not shapes or next(iter(shapes))[0] < 3:
        found = next(iter(shapes))[0] if shapes else 0
        raise OptionError(
            f"{found} methods are ranked by {len(tables)} metrics; expected at least three methods and one metric"
        )
    stacked = [one.mT.contiguous() for one in tables.values()]
    pairs = torch.stack([torch.stack([spearman(a, b) for b in stacked]) for a in stacked])
    return RankAgreement(
        tuple(tables), pairs.nanmean(2), pairs.isfinite().sum(2), torch.stack([_alpha(one) for one in stacked])
    )


def _alpha(scores: Float[Tensor, "n methods"]) -> Float[Tensor, ""]:
    """Return Krippendorff's alpha of ranks with the squared distance: 1 - observed / expected disagreement.

    Images with a missing value are left out.
    """
    whole = scores[scores.isfinite().all(1)]
    if len(whole) < 2:
        return scores.new_full((), torch.nan)
    given = ranks(whole)
    # A mean squared difference is twice a variance: of one method's ranks over the images, and of all ranks.
    observed = 2 * given.var(0, unbiased=True).mean()
    expected = 2 * given.flatten().var(unbiased=True)
    return 1 - observed / expected
