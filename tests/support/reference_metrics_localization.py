"""Slow transcriptions of metrics against masks, one image at a time, with loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from reference_metrics import order
from scipy.ndimage import binary_fill_holes

Array = Any


def pointing_game(heatmap: Array, mask: Array, tolerance: float = 0) -> float:
    peak = np.unravel_index(order(heatmap)[0], heatmap.shape)
    for place in zip(*np.nonzero(mask), strict=True):
        squared = sum((int(a) - int(b)) ** 2 for a, b in zip(peak, place, strict=True))
        if squared == 0 or squared < tolerance**2:
            return 1.0
    return 0.0


def mass_accuracy(heatmap: Array, mask: Array) -> float:
    positive = [(max(float(v), 0.0), bool(m)) for v, m in zip(heatmap.ravel(), mask.ravel(), strict=True)]
    return sum(v for v, m in positive if m) / sum(v for v, _ in positive)


def share_of_top(heatmap: Array, mask: Array, k: int) -> float:
    k = min(k, heatmap.size)
    inside = mask.ravel()
    return sum(bool(inside[position]) for position in order(heatmap)[:k]) / k


def rank_accuracy(heatmap: Array, mask: Array) -> float:
    return share_of_top(heatmap, mask, int(mask.sum()))


def iou(found: Array, mask: Array) -> float:
    return float((found & mask).sum() / (found | mask).sum())


def weighted_ioa(heatmap: Array, mask: Array, threshold: float) -> float:
    found = heatmap >= threshold * heatmap.max()
    return float(heatmap[found & mask].sum() / heatmap[found].sum())


def average_precision(heatmap: Array, mask: Array, bins: int) -> float:
    """Thresholds from the highest bin to the lowest: precision times the rise of recall."""
    place = np.minimum((heatmap.ravel() * bins).astype(int), bins - 1)
    truth, total, area, recall = mask.ravel(), int(mask.sum()), 0.0, 0.0
    for threshold in sorted(set(place.tolist()), reverse=True):
        chosen = place >= threshold
        hits = int((chosen & truth).sum())
        area += hits / int(chosen.sum()) * (hits / total - recall)
        recall = hits / total
    return area


def regions(above: Array) -> list[list[tuple[int, int]]]:
    """Connected positions, diagonals included, by flood fill."""
    left, found = set(zip(*(axis.tolist() for axis in np.nonzero(above)), strict=True)), []
    while left:
        queue = [left.pop()]
        for y, x in queue:
            for place in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if place in left:
                    left.remove(place)
                    queue.append(place)
        found.append(queue)
    return found


def contour_area(region: list[tuple[int, int]]) -> float:
    """The area inside of the contour through the outer positions of a region, holes filled.

    The contour goes through the centers of positions, so 2 x 2 of them enclose 1, a triangle of three 1/2.
    """
    y, x = np.array(region).T
    filled = np.zeros((y.max() + 2, x.max() + 2), dtype=bool)
    filled[y, x] = True
    corners = binary_fill_holes(filled).astype(int)
    full = corners[1:, 1:] + corners[1:, :-1] + corners[:-1, 1:] + corners[:-1, :-1]
    return float((full == 4).sum() + 0.5 * (full == 3).sum())


def box(region: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    ys, xs = [y for y, _ in region], [x for _, x in region]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (sum(areas) - shared)


def spearman_ranks(values: Array) -> list[float]:
    """Equal values share the mean of their ranks."""
    flat = values.ravel().tolist()
    return [sum(other < value for other in flat) + (flat.count(value) - 1) / 2 for value in flat]


def ssim(first: Array, second: Array, window: int, sigma: float) -> float:
    """Every window that lies inside, weighted by a Gaussian; the range is that of both maps together."""
    span = max(first.max(), second.max()) - min(first.min(), second.min())
    offsets = range(-(window // 2), window // 2 + 1)
    weights = np.array([[math.exp(-(y * y + x * x) / (2 * sigma**2)) for x in offsets] for y in offsets])
    weights /= weights.sum()
    c1, c2, values = (0.01 * span) ** 2, (0.03 * span) ** 2, []
    for y in range(first.shape[0] - window + 1):
        for x in range(first.shape[1] - window + 1):
            a, b = first[y : y + window, x : x + window], second[y : y + window, x : x + window]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))
