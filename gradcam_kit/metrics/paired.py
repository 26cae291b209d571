"""Paired comparison of methods on the same images: differences with intervals and corrected p-values.

Values of the same images by two methods are compared image by image. The interval is the percentile bootstrap of the
mean difference (Efron and Tibshirani 1993); p is two-sided, from the bootstrap of the differences shifted to mean 0, or
by the signed ranks of Wilcoxon (1945). Several p-values are corrected by Holm (1979). Everything is arithmetic on
arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.random import PCG64, Generator

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.options import one_of, positive_int
from gradcam_kit.significance import holm

Values = Float[np.ndarray, " n"]
PairedTest = Literal["bootstrap", "wilcoxon"]

_CHUNK = 1 << 22  # most numbers drawn at once


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two methods on the same images, with its interval and p-values.

    Attributes:
        first: a method.
        second: the other.
        difference: the mean of first - second.
        low: lower end of the interval of this mean.
        high: upper end of the interval of this mean.
        p: two-sided, uncorrected.
        p_holm: the same, corrected for all pairs of the call.
        count: number of images for which both methods have a value.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    count: int


def paired_differences(
    values: Mapping[str, Values],
    pairs: Iterable[tuple[str, str]] | None = None,
    *,
    test: PairedTest = "bootstrap",
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> list[PairedDifference]:
    """Compare methods pair by pair.

    Args:
        values: method -> a number for each image, in the same order; NaN where it does not count.
        pairs: pairs of methods; None = all pairs.
        test: test that gives p, "bootstrap" or "wilcoxon".
        draws: of the bootstrap.
        level: of the intervals; they are not corrected.
        seed: seed of the bootstrap.

    Returns:
        One comparison for each pair, in order; NaN where fewer than two images count.

    Raises:
        OptionError: a method without values, or an invalid option.
        ShapeError: methods with different numbers of images.

    Example:
        >>> values = {"a": np.array([0.9, 0.8, 0.7]), "b": np.array([0.1, 0.2, 0.1])}
        >>> round(paired_differences(values)[0].difference, 3)
        0.667
    """
    one_of("test", test, get_args(PairedTest))
    positive_int("draws", draws)
    if not 0 < level < 1:
        raise OptionError(f"level is {level!r}; expected a number above 0 and below 1")
    if len({len(one) for one in values.values()}) > 1:
        sizes = ", ".join(f"{name} {len(one)}" for name, one in values.items())
        raise ShapeError(f"methods have different numbers of images: {sizes}; expected the same images for all")
    asked = list(combinations(values, 2) if pairs is None else pairs)
    for name in (name for pair in asked for name in pair):
        if name not in values:
            raise OptionError(f"there are no values of {name!r}, only of {', '.join(values)}")
    table = {name: np.asarray(one, np.float64) for name, one in values.items()}
    groups: dict[bytes, list[int]] = {}  # pairs with values for the same images share their draws
    columns = [table[first] - table[second] for first, second in asked]
    for place, column in enumerate(columns):
        groups.setdefault(np.isfinite(column).tobytes(), []).append(place)
    found: dict[int, PairedDifference] = {}
    for places in groups.values():
        known = np.isfinite(columns[places[0]])
        own = np.stack([columns[place][known] for place in places], 1)
        low = high = p = np.full(len(places), math.nan)
        if len(own) >= 2:
            low, high, p = bootstrap_means(own, draws=draws, level=level, seed=seed)
            p = np.array([wilcoxon_p(one) for one in own.T]) if test == "wilcoxon" else p
        for place, difference, lowest, highest, own_p in zip(places, own.T, low, high, p, strict=True):
            first, second = asked[place]
            mean = float(difference.mean()) if len(own) else math.nan
            interval = float(lowest), float(highest)
            found[place] = PairedDifference(first, second, mean, *interval, float(own_p), math.nan, len(own))
    ordered = [found[place] for place in range(len(asked))]
    corrected = holm([one.p for one in ordered])
    return [replace(one, p_holm=p) for one, p in zip(ordered, corrected, strict=True)]


def bootstrap_means(
    differences: Float[np.ndarray, "n k"], *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return low and high of the percentile interval of each column's mean, and the two-sided p of a mean of 0.

    p is the share of the means of drawn rows, shifted to mean 0, that are at least as far from 0 as the mean; the rows
    themselves count as one of the draws, so p is never 0. All columns share their draws.

    Args:
        differences: finite, two rows or more.
        draws: number of resamples with replacement.
        level: of the interval.
        seed: seed of the draws.
    """
    n, means = len(differences), differences.mean(0)
    generator, at_once = Generator(PCG64(seed)), max(1, _CHUNK // n)
    parts = []
    for start in range(0, draws, at_once):  # how often each row is drawn
        counts = generator.multinomial(n, np.full(n, 1 / n), min(at_once, draws - start))
        parts.append(counts @ differences / n)
    drawn = np.concatenate(parts)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    rounding = 1e-9 * np.abs(differences).max(0)
    as_far = (np.abs(drawn - means) >= np.abs(means) - rounding).sum(0)
    return low, high, (as_far + 1) / (draws + 1)


def wilcoxon_p(differences: Values) -> float:
    """Return the two-sided p of the signed ranks, by the normal approximation with its correction for ties.

    Differences of 0 are left out; p is 1 if all differences are 0.
    """
    kept = differences[differences != 0]
    n = len(kept)
    if n == 0:
        return 1.0
    sizes = np.abs(kept)
    _, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    statistic = float(ranks[kept > 0].sum())
    variance = n * (n + 1) * (2 * n + 1) / 24 - float((counts.astype(float) ** 3 - counts).sum()) / 48
    z = (statistic - n * (n + 1) / 4) / math.sqrt(variance)
    return math.erfc(abs(z) / math.sqrt(2))
