"""How sure a mean and a difference are: networks are drawn again, then the images of each.

With one network, intervals over images say how sure one is about this network and no other. So where networks are
trained, the cluster bootstrap draws networks with replacement, and within each its images with replacement (Davison
and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.significance import holm

DRAWS = 10_000
Scores = Sequence[Tensor]
"""Of each network, the scores of its images; NaN where the map is empty."""


@dataclass(frozen=True)
class Cell:
    """Mean and 95 % interval of the images that have a score; `empty` counts the others."""

    mean: float
    low: float
    high: float
    n: int
    empty: int
    networks: int = 1


@dataclass(frozen=True)
class Pair:
    """The claim that one row of a column is better than another."""

    column: str
    better: str
    worse: str


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another on the same images of the same networks.

    Attributes:
        column: of the table.
        better: the row that is claimed to be better.
        worse: the other.
        difference: mean of better - worse over images for which both have a map.
        low: of its 95 % interval.
        high: of its 95 % interval.
        p: two-sided, of a mean of 0, from the bootstrap of the differences shifted to mean 0.
        p_holm: the same, corrected for all pairs of the file.
        n: images for which both have a map.
        networks: that were trained or drawn.
        agreeing: of these, how many have a positive mean difference.
        low_with_empty: the same interval where an empty map counts as 0.
        high_with_empty: likewise.
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
    low_with_empty: float
    high_with_empty: float


def summarize(scores: Scores, seed: int) -> Cell:
    """Mean over the images of all networks that have a score, with the interval of the cluster bootstrap."""
    values = _joined(scores)
    good = np.isfinite(values)
    counts = int(good.sum()), int((~good).sum()), len(scores)
    if not good.any():
        return Cell(float("nan"), float("nan"), float("nan"), *counts)
    low, high = np.nanquantile(_drawn_means(scores, values, seed), [0.025, 0.975])
    return Cell(float(values[good].mean()), float(low), float(high), *counts)


def differences(columns: Mapping[str, Mapping[str, Scores]], pairs: Iterable[Pair], seed: int) -> list[Difference]:
    """Test pairs on the images that both rows have seen; pairs whose rows or column are not there are left out."""
    found = [
        _difference(pair, columns[pair.column][pair.better], columns[pair.column][pair.worse], seed)
        for pair in pairs
        if pair.column in columns and {pair.better, pair.worse} <= set(columns[pair.column])
    ]
    corrected = holm([one.p for one in found])
    return [replace(one, p_holm=float(p)) for one, p in zip(found, corrected, strict=True)]


def _difference(pair: Pair, better: Scores, worse: Scores, seed: int) -> Difference:
    seen = [min(len(one), len(other)) for one, other in zip(better, worse, strict=True)]
    both = [(one[:n], other[:n]) for one, other, n in zip(better, worse, seen, strict=True)]
    paired = [one - other for one, other in both]
    values = _joined(paired)
    good = np.isfinite(values)
    whole = [one.nan_to_num() - other.nan_to_num() for one, other in both]
    low_with_empty, high_with_empty = np.quantile(_drawn_means(whole, _joined(whole), seed), [0.025, 0.975])
    mean = low = high = p = float("nan")
    if good.any():
        mean, drawn = float(values[good].mean()), _drawn_means(paired, values, seed)
        low, high = (float(end) for end in np.nanquantile(drawn, [0.025, 0.975]))
        drawn = drawn[np.isfinite(drawn)]
        rounding = 1e-9 * np.abs(values[good]).max()
        p = (int((np.abs(drawn - mean) >= abs(mean) - rounding).sum()) + 1) / (len(drawn) + 1)
    return Difference(
        pair.column,
        pair.better,
        pair.worse,
        difference=mean,
        low=low,
        high=high,
        p=p,
        p_holm=float("nan"),
        n=int(good.sum()),
        networks=len(paired),
        agreeing=sum(float(one.nanmean()) > 0 for one in paired),
        low_with_empty=float(low_with_empty),
        high_with_empty=float(high_with_empty),
    )


def _joined(scores: Scores) -> Float[np.ndarray, " images"]:
    return np.concatenate([one.double().numpy() for one in scores])


def _drawn_means(scores: Scores, values: Float[np.ndarray, " images"], seed: int) -> Float[np.ndarray, " draws"]:
    """The mean of each draw over the images that have a score; NaN where none of those that were drawn has."""
    counts = _counts(tuple(map(len, scores)), seed)
    good = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means: Float[np.ndarray, " draws"] = (counts @ np.where(good, values, 0)) / (counts @ good.astype(float))
    return means


@lru_cache(maxsize=8)
def _counts(sizes: tuple[int, ...], seed: int) -> Float[np.ndarray, "draws images"]:
    """How often each image of each network is drawn: all rows of a column share their draws."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), DRAWS)
    # A network that is drawn twice has its images drawn twice, each time as many as it has.
    parts = [rng.multinomial(times * size, np.full(size, 1 / size)) for times, size in zip(drawn.T, sizes, strict=True)]
    return np.concatenate(parts, 1).astype(float)
