"""Slow transcriptions of the metrics' definitions, one image at a time, with loops and in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any
Score = Callable[[Array], float]


def order(heatmap: Array) -> list[int]:
    """Positions from the most to the least relevant; of equal values the first one comes first."""
    values = [float(v) for v in np.asarray(heatmap).ravel()]
    return sorted(range(len(values)), key=lambda position: (-values[position], position))


def average_drop(heatmap: Array, image: Array, score: Score) -> float:
    before, after = score(image), score(image * heatmap)
    return 100 * max(0.0, before - after) / max(before, 1e-7)


def average_increase(heatmap: Array, image: Array, score: Score) -> float:
    return 100.0 if score(image) < score(image * heatmap) else 0.0


def average_gain(heatmap: Array, image: Array, score: Score) -> float:
    before, after = score(image), score(image * heatmap)
    return 0.0 if before == 1 else 100 * max(0.0, after - before) / (1 - before)


def coherency(heatmap: Array, image: Array, explain: Callable[[Array], Array]) -> float:
    again = explain(image * heatmap)
    return (pearson(heatmap, again) + 1) / 2


def adcc_complexity(heatmap: Array) -> float:
    low, high = heatmap.min(), heatmap.max()
    return float(((heatmap - low) / (high - low)).sum() / heatmap.size)


def adcc(heatmap: Array, image: Array, score: Score, explain: Callable[[Array], Array]) -> float:
    parts = [
        coherency(heatmap, image, explain),
        1 - adcc_complexity(heatmap),
        1 - average_drop(heatmap, image, score) / 100,
    ]
    return 0.0 if 0 in parts else 3 / sum(1 / part for part in parts)


def walk(heatmap: Array, start: Array, end: Array, score: Score, steps: int) -> tuple[float, list[float]]:
    """The area under the scores from one image to another, position by position, and the scores."""
    size = heatmap.size
    stride = math.ceil(size / steps)
    ordered = order(heatmap)
    fractions, scores, done = [0.0], [score(start)], 0
    current = start.copy()
    while done < size:
        for position in ordered[done : done + stride]:
            place = np.unravel_index(position, heatmap.shape)
            current[(slice(None), *place)] = end[(slice(None), *place)]
        done = min(done + stride, size)
        fractions.append(done / size)
        scores.append(score(current))
    area = 0.0
    for i in range(1, len(scores)):
        area += (fractions[i] - fractions[i - 1]) * (scores[i] + scores[i - 1]) / 2
    return area, scores


def removed_positions(heatmap: Array, percent: float, most_relevant_first: bool) -> Array:
    """A boolean map of the ceil(pP) positions that are removed."""
    count = math.ceil(round(percent * heatmap.size / 100, 6))
    ordered = order(heatmap)
    chosen = ordered[:count] if most_relevant_first else ordered[len(ordered) - count :]
    removed = np.zeros(heatmap.size, dtype=bool)
    removed[chosen] = True
    return removed.reshape(heatmap.shape)


def impute(image: Array, removed: Array) -> Array:
    """Every removed position is the weighted mean of its neighbors: a dense system, solved directly."""
    height, width = removed.shape
    unknown = {place: i for i, place in enumerate(zip(*np.nonzero(removed), strict=True))}
    matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), len(image)))
    for (y, x), row in unknown.items():
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                other = (y + dy, x + dx)
                if (dy, dx) == (0, 0) or not (0 <= other[0] < height and 0 <= other[1] < width):
                    continue
                weight = 1 / 12 if dy and dx else 1 / 6
                matrix[row, row] += weight
                if other in unknown:
                    matrix[row, unknown[other]] -= weight
                else:
                    right[row] += weight * image[(slice(None), *other)]
    filled = image.copy()
    solution = np.linalg.solve(matrix, right)
    for place, row in unknown.items():
        filled[(slice(None), *place)] = solution[row]
    return filled


def road(
    heatmap: Array, image: Array, score: Score, noise: Array, percentages: Sequence[float], most_relevant_first: bool
) -> list[float]:
    scores = []
    for percent in percentages:
        removed = removed_positions(heatmap, percent, most_relevant_first)
        scores.append(score(impute(image, removed) + noise * removed))
    return scores


def sensitivity_max(heatmap: Array, moved: Sequence[Array], explain: Callable[[Array], Array]) -> float:
    norm = math.sqrt((heatmap**2).sum())
    return max(math.sqrt(((explain(image) - heatmap) ** 2).sum()) / norm for image in moved)


def infidelity(heatmap: Array, image: Array, score: Score, moves: Sequence[Array], scaled: bool) -> float:
    products = [sum(float((move[c] * heatmap).sum()) for c in range(len(image))) for move in moves]
    falls = [score(image) - score(image - move) for move in moves]
    power = sum(product**2 for product in products)
    scale = 1.0
    if scaled:
        scale = sum(p * f for p, f in zip(products, falls, strict=True)) / power if power else 0.0
    return sum((scale * p - f) ** 2 for p, f in zip(products, falls, strict=True)) / len(moves)


def pearson(first: Array, second: Array) -> float:
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def entropy(heatmap: Array) -> float:
    total = sum(abs(float(v)) for v in heatmap.ravel())
    shares = [abs(float(v)) / total for v in heatmap.ravel()]
    return -sum(share * math.log(share) for share in shares if share > 0)


def sparseness(heatmap: Array) -> float:
    """The Gini index as the mean absolute difference of all pairs over twice the mean."""
    values = np.abs(heatmap.ravel())
    differences = sum(abs(float(a) - float(b)) for a in values for b in values)
    return float(differences / (2 * len(values) ** 2 * values.mean()))
