"""Slow transcriptions of targets, of fusions of layers, and of methods that combine several maps into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from reference_gradients import grad_cam_plus_plus, grad_cam_weights
from reference_last_stage import Array, float64, heatmap, normalize_minmax, relu, upsample
from reference_scores import gaussian_blur, softmax


def finer_references(logits: Any, target: int, count: int = 3) -> list[int]:
    """Finer-CAM: the classes whose logits are nearest to the target's, the target excluded; ties by lower index."""
    logits = float64(logits)
    others = [d for d in range(len(logits)) if d != target]
    return sorted(others, key=lambda d: abs(logits[d] - logits[target]))[:count]


def finer_score(
    logits: Any, target: int, count: int = 3, weighting: str = "softmax", alpha: float = 1.0, gamma: float = 0.6
) -> float:
    """Finer-CAM, Zhang et al., CVPR 2025, 2501.11309. "softmax" (authors' code): `Σ_d p_d (z_c − α z_d) / Σ_d p_d`.

    Ambiguous: p is the softmax over all logits. "mean": `z_c − γ mean_d z_d`, said to be the paper's form, unconfirmed.
    """
    logits = float64(logits)
    references = finer_references(logits, target, count)
    if weighting == "mean":
        return float(logits[target] - gamma * sum(logits[d] for d in references) / len(references))
    probabilities = softmax(list(logits))
    weighted = sum(probabilities[d] * (logits[target] - alpha * logits[d]) for d in references)
    return float(weighted / sum(probabilities[d] for d in references))


def logit_difference(logits: Any, target: int, other: int | None = None) -> float:
    """DiffGradCAM, Piland et al. 2025, 2506.08514: `z_c − z_d`. Ambiguous: against the rest is against their mean."""
    logits = float64(logits)
    rest = [d for d in range(len(logits)) if d != target] if other is None else [other]
    return float(logits[target] - sum(logits[d] for d in rest) / len(rest))


def segmentation_score(logits: Any, target: int, mask: Any) -> float:
    """Seg-Grad-CAM, Vinogradova et al., 2002.11434: the class's logits `(classes, *t)` summed over a region."""
    logits, mask = float64(logits), float64(mask)
    return float(sum(logits[(target, *t)] for t in np.ndindex(*mask.shape) if mask[t]))


def refine_cam(layer_activations: Sequence[Any], layer_gradients: Sequence[Any], size: Sequence[int]) -> Array:
    """Refine-CAM, Domeniconi et al. 2026, 2605.14641: `Π_l U(N(ReLU(Grad-CAM++_l)))`, normalized again."""
    pairs = zip(layer_activations, layer_gradients, strict=True)
    return heatmap([grad_cam_plus_plus(a, g) for a, g in pairs], size, fusion="product")


def winsor_importance(weights: Any, importance: str = "mean") -> float:
    """Winsor-CAM, Wall et al., TPAMI 2026: mean, maximum or L2 norm of a layer's Grad-CAM weights, clipped at 0."""
    weights = float64(weights)
    value = {"mean": weights.mean(), "max": weights.max(), "l2": (weights**2).sum() ** 0.5}[importance]
    return max(float(value), 0.0)


def winsorize(importances: Sequence[float], percentile: float) -> list[float]:
    """Winsor-CAM: cap the positive importances at their percentile, rescale them to [0.1, 1] (all equal: 1).

    Unconfirmed: only large values are capped, the percentile is interpolated linearly, importances of 0 stay 0.
    """
    positive = [value for value in importances if value > 0]
    if not positive:
        return [0.0] * len(importances)
    cap = float(np.percentile(positive, percentile))
    low, high = min(min(positive), cap), min(max(positive), cap)
    rescaled = []
    for value in importances:
        if value <= 0:
            rescaled.append(0.0)
        elif high == low:
            rescaled.append(1.0)
        else:
            rescaled.append(0.1 + 0.9 * (min(value, cap) - low) / (high - low))
    return rescaled


def winsor_cam(
    saliencies: Sequence[Any],
    layer_gradients: Sequence[Any],
    size: Sequence[int],
    percentile: float,
    importance: str = "mean",
) -> Array:
    """Winsor-CAM, Wall et al., TPAMI 2026, 2507.10846: `Σ_l I_l U(N(ReLU(grad-cam_l)))`, I winsorized.

    Ambiguous: linear upsampling, as everywhere; the code takes the nearest.
    """
    importances = winsorize([winsor_importance(grad_cam_weights(g), importance) for g in layer_gradients], percentile)
    maps = [upsample(normalize_minmax(relu(saliency)), size) for saliency in saliencies]
    return sum(factor * one for factor, one in zip(importances, maps, strict=True))


def smooth(saliencies: Sequence[Any]) -> Array:
    """Smoothing of any method, no paper: mean of the saliency over noisy inputs."""
    return sum(float64(one) for one in saliencies) / len(saliencies)


def flip_mean(saliencies: Sequence[Any], flipped_axes: Sequence[int | None]) -> Array:
    """Averaging of any method over flips, no paper: mean of the saliencies, flips undone (None: was not flipped)."""
    undone = [
        float64(one) if axis is None else np.flip(float64(one), axis)
        for one, axis in zip(saliencies, flipped_axes, strict=True)
    ]
    return sum(undone) / len(undone)


def sess(
    window_maps: Sequence[Any],
    corners: Sequence[tuple[int, ...]],
    windows: Sequence[tuple[int, ...]],
    probabilities: Sequence[float],
    size: Sequence[int],
    fusion: str = "mean",
    blur: tuple[int, float] | None = (11, 5.0),
) -> Array:
    """SESS, Tursun et al., ECCV 2022, 2207.01769: window maps × probability / its maximum, pasted, averaged, blurred.

    Corners and window sizes are in pixels of the input. Unconfirmed: the maximum is over all windows, each map is
    resized to its window, positions without a window are 0, "max" is over the windows that cover a position.
    """
    total, count, largest = np.zeros(tuple(size)), np.zeros(tuple(size)), np.zeros(tuple(size))
    for one, corner, window, probability in zip(window_maps, corners, windows, probabilities, strict=True):
        weighted = upsample(one, window) * probability / max(probabilities)
        for s in np.ndindex(*window):
            t = tuple(a + b for a, b in zip(corner, s, strict=True))
            total[t] += weighted[s]
            largest[t] = weighted[s] if count[t] == 0 else max(largest[t], weighted[s])
            count[t] += 1
    fused = {"mean": total / np.maximum(count, 1), "max": largest}[fusion]
    return fused if blur is None else gaussian_blur(fused[None], *blur)[0]


def dcam(cams: Sequence[Any], orders: Sequence[Sequence[int]]) -> Array:
    """dCAM, Boniol et al., SIGMOD 2022, 2207.12165: variance over positions × mean over dimensions and positions.

    `cams[i]` is the CAM `(D rows, t)` of the cube of `orders[i]`, whose row r holds dimension `order[(r + p) % D]` at
    position p; M(dimension, position, t) is the mean over the orders that were kept. Population variance. `(D, t)`.
    """
    dimensions, times = float64(cams[0]).shape
    regrouped = np.zeros((dimensions, dimensions, times))
    for one, order in zip(cams, orders, strict=True):
        one = float64(one)
        for row, position, t in np.ndindex(dimensions, dimensions, times):
            dimension = order[(row + position) % dimensions]
            regrouped[dimension, position, t] += one[row, t] / len(cams)
    result = np.zeros((dimensions, times))
    for dimension, t in np.ndindex(dimensions, times):
        result[dimension, t] = regrouped[dimension, :, t].var() * regrouped[:, :, t].mean()
    return result
