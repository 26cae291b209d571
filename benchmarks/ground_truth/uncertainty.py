"""Compute the uncertainty of means and differences, within one network or over several.

If several networks are trained, the mean of each network is one observation, and intervals and p-values come from
Student's t over these means (Student 1908). The cluster bootstrap, which draws networks and then the images of each
(Davison and Hinkley 1997, section 3.8), is overconfident with five networks; its interval is stored, but no
conclusion relies on it.

With a single network, each picture is one observation, and the result says nothing about other networks: intervals
come from Student's t, p-values from random sign flips, as in `gradcam_kit.metrics.paired_differences`. Sign flips of
five networks could not give p < 0.05. Fewer than `FEWEST` pictures get no interval.

Several targets of one picture are one observation, their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from benchmarks.ground_truth.scoring import is_deletion
from gradcam_kit.metrics.paired import mean_interval, sign_flip_p
from gradcam_kit.significance import holm

DRAWS = 10_000
FEWEST = 5
"""Minimum number of pictures for an interval if there is only one network."""
Scores = Sequence[Tensor]
"""For each network, the scores of its pictures `(n,)`, or of the targets of its pictures `(n, m)`; NaN for an empty
map.
"""
Values = Sequence[Float[np.ndarray, " pictures"]]


@dataclass(frozen=True)
class Cell:
    """The mean of one row in one column, with its intervals.

    Attributes:
        mean: mean over pictures; for several networks, the mean of their means.
        low: lower end of the 95 % interval; NaN without an interval.
        high: upper end of the 95 % interval; NaN without an interval.
        n: number of pictures with a map.
        empty: number of pictures all of whose maps are empty.
        networks: number of included networks; 1 if the test does not train or draw any.
        empty_maps: the share of all maps that is empty, 0 to 1.
        cluster_low: lower end of the interval of the cluster bootstrap, which is too narrow; NaN for one network.
        cluster_high: upper end of this interval.
    """

    mean: float
    low: float
    high: float
    n: int
    empty: int
    networks: int = 1
    empty_maps: float = 0.0
    cluster_low: float = math.nan
    cluster_high: float = math.nan


@dataclass(frozen=True)
class Pair:
    """The claim that one row of a column is better than another, or worse by less than a margin."""

    column: str
    better: str
    worse: str
    margin: float = 0.0


@dataclass(frozen=True)
class Difference:
    """The difference of two rows on the same pictures of the same networks.

    Attributes:
        column: column of the table.
        better: the row that is claimed to be better.
        worse: the other row.
        difference: mean of better - worse (for deletion: worse - better) over targets for which both have a map,
            averaged as in `Cell`.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        p: two-sided p-value of a mean of 0; with a margin, of a mean of -margin.
        p_holm: the p-value corrected for all pairs of the file.
        n: number of pictures for which both have a map.
        networks: number of included networks; 1 if the test does not train or draw any.
        agreeing: number of observations (networks, or the pictures of one network) with a difference above -margin.
        observations: number of observations.
        low_with_empty: lower end of the interval if an empty map is scored as 0, or as 1 for deletion.
        high_with_empty: upper end of this interval.
        margin: amount by which the first row may be worse.
    """

    column: str
    better: str
    worse: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    networks: int
    agreeing: int
    observations: int
    low_with_empty: float
    high_with_empty: float
    margin: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval, the p-value of a mean of 0, and the underlying observations."""

    mean: float
    low: float
    high: float
    p: float
    observations: Float[np.ndarray, " observations"]


def summarize(scores: Scores, seed: int) -> Cell:
    """Return the mean of a row with its interval, which is clipped to the possible range.

    Args:
        scores: the scores of each network.
        seed: seed of the draws.

    Returns:
        The mean, its intervals, and the number of pictures, empty maps and networks.
    """
    values = [per_picture(one) for one in scores]
    joined = np.concatenate(values)
    n = int(np.isfinite(joined).sum())
    maps = np.concatenate([one.double().flatten().numpy() for one in scores])
    found = estimate(values, seed)
    # a share is in [0, 1], but the score of the shortcut test is a difference of two shares, in [-1, 1]
    least = 0.0 if n and np.nanmin(joined) >= 0 else -1.0
    low, high = (float(np.clip(end, least, 1)) for end in (found.low, found.high))
    cluster = (
        np.nanquantile(cluster_means(values, seed), [0.025, 0.975]).tolist()
        if n and len(values) > 1
        else [math.nan, math.nan]
    )
    return Cell(
        found.mean, low, high, n, len(joined) - n, len(scores), float(np.isnan(maps).mean()), cluster[0], cluster[1]
    )


def differences(columns: Mapping[str, Mapping[str, Scores]], pairs: Iterable[Pair], seed: int) -> list[Difference]:
    """Test pairs on the pictures that both rows have in common; skip pairs whose rows or column do not exist."""
    found = [
        _difference(pair, columns[pair.column][pair.better], columns[pair.column][pair.worse], seed)
        for pair in pairs
        if pair.column in columns and {pair.better, pair.worse} <= set(columns[pair.column])
    ]
    corrected = holm([one.p for one in found])
    return [replace(one, p_holm=float(p)) for one, p in zip(found, corrected, strict=True)]


def estimate(values: Values, seed: int) -> Estimate:
    """Estimate the mean over networks, or over the pictures of a single network.

    Args:
        values: for each network, the values of its pictures; NaN for a missing value.
        seed: seed of the draws.

    Returns:
        The estimate; NaN if there are too few values.
    """
    known = [one[np.isfinite(one)] for one in values]
    if len(values) > 1:
        means = np.array([one.mean() for one in known if len(one)])
        return Estimate(_mean(means), *mean_interval(means), _student_p(means), means)
    [own] = known
    low, high = mean_interval(own) if len(own) >= FEWEST else (math.nan, math.nan)
    [p] = sign_flip_p([own], DRAWS, seed) if len(own) else [math.nan]
    return Estimate(_mean(own), low, high, p, own)


def cluster_means(values: Values, seed: int) -> Float[np.ndarray, " draws"]:
    """Return the mean of each draw of networks and pictures; NaN if no drawn picture has a value."""
    joined = np.concatenate(values)
    counts = _counts(tuple(map(len, values)), seed)
    good = np.isfinite(joined)
    with np.errstate(invalid="ignore"):
        means: Float[np.ndarray, " draws"] = (counts @ np.where(good, joined, 0)) / (counts @ good.astype(float))
    return means


def _difference(pair: Pair, better: Scores, worse: Scores, seed: int) -> Difference:
    seen = [min(len(one), len(other)) for one, other in zip(better, worse, strict=True)]
    both = [(one[:n], other[:n]) for one, other, n in zip(better, worse, seen, strict=True)]
    sign, worst = (-1, 1.0) if is_deletion(pair.column) else (1, 0.0)
    paired = [per_picture(sign * (one - other)) for one, other in both]
    found = estimate(paired, seed)
    filled = [per_picture(sign * (one.nan_to_num(worst) - other.nan_to_num(worst))) for one, other in both]
    whole = estimate(filled, seed)
    return Difference(
        pair.column,
        pair.better,
        pair.worse,
        difference=found.mean,
        low=found.low,
        high=found.high,
        p=estimate([one + pair.margin for one in paired], seed).p,
        p_holm=math.nan,
        n=int(sum(np.isfinite(one).sum() for one in paired)),
        networks=len(paired),
        agreeing=int((found.observations > -pair.margin).sum()),
        observations=len(found.observations),
        low_with_empty=whole.low,
        high_with_empty=whole.high,
        margin=pair.margin,
    )


def per_picture(scores: Tensor) -> Float[np.ndarray, " pictures"]:
    """Return the mean score of each picture over its targets that have a score.

    Args:
        scores: `(n,)`, or `(n, m)` for m targets of each picture; NaN where the map is empty.

    Returns:
        One mean per picture; NaN if all its maps are empty.
    """
    values: Float[np.ndarray, " pictures"] = (scores.nanmean(1) if scores.ndim == 2 else scores).double().numpy()
    return values


def _student_p(means: Float[np.ndarray, " networks"]) -> float:
    """Return the two-sided p-value of Student's t-test of a mean of 0.

    It is NaN for fewer than two networks, and 1 if all means are 0.
    """
    if len(means) < 2:
        return math.nan
    if np.abs(means).max() == 0:
        return 1.0
    error = max(float(means.std(ddof=1)) / math.sqrt(len(means)), 1e-9 * float(np.abs(means).max()))
    return 2 * float(stats.t.sf(abs(float(means.mean())) / error, len(means) - 1))


def _mean(observations: Float[np.ndarray, " observations"]) -> float:
    return float(observations.mean()) if len(observations) else math.nan


@lru_cache(maxsize=8)
def _counts(sizes: tuple[int, ...], seed: int) -> Float[np.ndarray, "draws images"]:
    """Return how often each picture of each network is drawn; all rows of a column share their draws."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), DRAWS)
    # if a network with n pictures is drawn k times, k * n of its pictures are drawn
    parts = [rng.multinomial(times * size, np.full(size, 1 / size)) for times, size in zip(drawn.T, sizes, strict=True)]
    return np.concatenate(parts, 1).astype(float)
