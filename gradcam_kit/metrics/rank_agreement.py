"""Agreement of metrics on the ranking of methods: Tomsett et al., AAAI 2020, https://arxiv.org/abs/1912.01451."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.similarity import ranks, spearman

_AT_ONCE = 1 << 16
"""Maximum number of images ranked at once, which bounds the memory of intermediate results."""


@dataclass(frozen=True, eq=False)
class RankAgreement:
    """Agreement of metrics with each other, and of each metric with itself from image to image.

    Attributes:
        metrics: names of the metrics.
        consistency: rank correlation over the methods for each pair of metrics (the paper's internal consistency
            reliability), averaged over the images where it is defined.
        counts: the number of images in each of these means.
        reliability: Krippendorff's alpha, per metric, of the ranks of the methods in the images (the paper's
            inter-rater reliability). It is 1 if all images agree, near 0 if they agree only by chance, and NaN with
            fewer than two images.
    """

    metrics: tuple[str, ...]
    consistency: Float[Tensor, "k k"]
    counts: Int[Tensor, "k k"]
    reliability: Float[Tensor, " k"]


def rank_agreement(scores: Mapping[str, Float[Tensor, "methods n"]], lower: Collection[str] = ()) -> RankAgreement:
    """Compare how metrics rank methods.

    Args:
        scores: metric -> its value for each method and image, NaN if missing. An image is used for two metrics if both
            metrics have a value for every method.
        lower: metrics for which lower is better; their sign is flipped.

    Raises:
        OptionError: no metric, or fewer than three methods, because two rankings of two methods can only agree or be
            opposite.
        ShapeError: metrics with different methods or images.
    """
    shapes = {tuple(one.shape) for one in scores.values()}
    if len(shapes) > 1:
        raise ShapeError(
            f"metrics have scores of shapes {sorted(shapes)}; expected (methods, images), the same for all"
        )
    if not shapes or next(iter(shapes))[0] < 3:
        found = next(iter(shapes))[0] if shapes else 0
        raise OptionError(
            f"number of methods: {found}, of metrics: {len(scores)}; expected at least three methods and one metric"
        )
    device, k = next(iter(scores.values())).device, len(scores)
    methods, images = next(iter(shapes))
    totals = torch.zeros(k, k, dtype=torch.float64, device=device)
    counts = torch.zeros(k, k, dtype=torch.long, device=device)
    ranked = [_RankSums.none(methods, device) for _ in scores]
    for start in range(0, images, _AT_ONCE):
        parts = [_higher_is_better(one[:, start : start + _AT_ONCE], name in lower) for name, one in scores.items()]
        for sums, part in zip(ranked, parts, strict=True):
            sums.add(part)
        for i, j in combinations_with_replacement(range(k), 2):
            alike = spearman(parts[i], parts[j])
            totals[i, j] += alike.nansum()
            counts[i, j] += alike.isfinite().sum()
    totals, counts = (one.triu() + one.triu(1).mT for one in (totals, counts))
    return RankAgreement(tuple(scores), totals / counts, counts, torch.stack([sums.alpha() for sums in ranked]))


def _higher_is_better(scores: Float[Tensor, "methods n"], is_lower: bool) -> Float[Tensor, "n methods"]:
    found = scores.double().mT.contiguous()
    return -found if is_lower else found


@dataclass
class _RankSums:
    """Sums over images, for Krippendorff's alpha. They are exact, because ranks are multiples of 1/2."""

    count: int
    ranks: Float[Tensor, " methods"]
    squares: Float[Tensor, " methods"]

    @classmethod
    def none(cls, methods: int, device: torch.device) -> _RankSums:
        """Return sums of zero, to which no image has been added."""
        return cls(0, *(torch.zeros(methods, dtype=torch.float64, device=device) for _ in range(2)))

    def add(self, scores: Float[Tensor, "n methods"]) -> None:
        """Add images, except those with a missing value."""
        given = ranks(scores[scores.isfinite().all(1)])
        self.count += len(given)
        self.ranks += given.sum(0)
        self.squares += (given**2).sum(0)

    def alpha(self) -> Float[Tensor, ""]:
        """Return Krippendorff's alpha of ranks with the squared distance: 1 - observed / expected disagreement."""
        if self.count < 2:
            return self.ranks.new_full((), torch.nan)
        # A mean squared difference is twice a variance: of one method's ranks over the images, and of all ranks.
        observed = 2 * _variance(self.count, self.ranks, self.squares).mean()
        expected = 2 * _variance(self.count * len(self.ranks), self.ranks.sum(), self.squares.sum())
        return 1 - observed / expected


def _variance(count: int, total: Float[Tensor, "*k"], squares: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    return (squares - total**2 / count) / (count - 1)
