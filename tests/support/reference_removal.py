"""Slow transcriptions of metrics that remove regions or subsets, and of those of stability: loops, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from reference_metrics import order, pearson
from scipy.stats import spearmanr

Array = Any
Score = Callable[[Array], float]


def without(image: Array, end: Array, places: Sequence[int]) -> Array:
    """The image with these positions, counted row by row, as in another image."""
    changed = image.copy()
    for place in places:
        where = np.unravel_index(place, image.shape[1:])
        changed[(slice(None), *where)] = end[(slice(None), *where)]
    return changed


def removal_area(heatmap: Array, image: Array, end: Array, score: Score, steps: int, least: bool) -> float:
    """The area under the scores while positions are removed, the last of the order first where `least`."""
    ordered, stride = order(heatmap), math.ceil(heatmap.size / steps)
    ordered = ordered[::-1] if least else ordered
    cuts = [*range(0, heatmap.size, stride), heatmap.size]
    scores = [score(without(image, end, ordered[:cut])) for cut in cuts]
    widths = [(after - before) / heatmap.size for before, after in pairwise(cuts)]
    return sum(width * (scores[i] + scores[i + 1]) / 2 for i, width in enumerate(widths))


def grid_labels(size: tuple[int, ...], side: int) -> Array:
    cells = [math.ceil(length / side) for length in size]
    labels = np.zeros(size, dtype=int)
    for where in np.ndindex(*size):
        labels[where] = np.ravel_multi_index([place // side for place in where], cells)
    return labels


def region_curve(heatmap: Array, image: Array, end: Array, labels: Array, score: Score, steps: int) -> list[float]:
    """The scores without the first 0, 1, ... regions by the mean of the map."""
    regions = sorted({int(one) for one in labels.ravel()})
    means = {one: float(np.mean(heatmap[labels == one])) for one in regions}
    ordered = sorted(regions, key=lambda one: (-means[one], one))
    removed: list[int] = []
    scores = [score(image)]
    for region in ordered[:steps]:
        removed += [int(place) for place in np.flatnonzero(labels.ravel() == region)]
        scores.append(score(without(image, end, removed)))
    return scores


def region_perturbation(scores: Sequence[float]) -> float:
    return sum(scores[0] - one for one in scores) / len(scores)


def irof(scores: Sequence[float]) -> float:
    relative, steps = [one / max(scores[0], 1e-7) for one in scores], len(scores) - 1
    return 1 - sum((relative[i] + relative[i + 1]) / 2 / steps for i in range(steps))


def subset_correlation(
    heatmap: Array, image: Array, end: Array, score: Score, draws: Sequence[Array], count: int
) -> float:
    """Over sets of the `count` positions whose draws are the smallest."""
    sums, falls = [], []
    for draw in draws:
        values = [float(one) for one in draw.ravel()]
        chosen = sorted(range(len(values)), key=lambda place: (values[place], place))[:count]
        sums.append(sum(float(heatmap.ravel()[place]) for place in chosen))
        falls.append(score(image) - score(without(image, end, chosen)))
    return pearson(np.array(sums), np.array(falls))


def monotonicity(heatmap: Array, image: Array, score: Score, noises: Sequence[Array], steps: int) -> float:
    ordered, stride = order(heatmap), math.ceil(heatmap.size / steps)
    groups = [ordered[start : start + stride] for start in range(0, heatmap.size, stride)]
    relevance = [sum(float(heatmap.ravel()[place]) for place in group) / len(group) for group in groups]
    effects = []
    for group in groups:
        squares = [(score(image) - score(without(image, noise, group))) ** 2 for noise in noises]
        effects.append(sum(squares) / len(squares))
    return float(spearmanr(relevance, effects).statistic)


def norm(values: Array) -> float:
    return math.sqrt(sum(float(one) ** 2 for one in np.asarray(values).ravel()))


def local_lipschitz(heatmap: Array, image: Array, moved: Sequence[Array], explain: Callable[[Array], Array]) -> float:
    return max(norm(explain(other) - heatmap) / norm(other - image) for other in moved)


def relative_norm(values: Array, others: Array, floor: float = 0.01) -> float:
    total = 0.0
    for value, other in zip(np.asarray(values).ravel(), np.asarray(others).ravel(), strict=True):
        divisor = float(value) if abs(value) >= floor else math.copysign(floor, value)
        total += ((float(other) - float(value)) / divisor) ** 2
    return math.sqrt(total)


def relative_stability(
    heatmap: Array, moved: Sequence[Array], explain: Callable[[Array], Array], change: Score
) -> float:
    """The largest relative change of the map over what `change` says of the changed image."""
    return max(relative_norm(heatmap, explain(other)) / max(change(other), 1e-6) for other in moved)
