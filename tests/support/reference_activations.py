"""Slow transcriptions of the methods that need only activations `(k, *s)` of one sample, and weights of the head."""

from __future__ import annotations

from typing import Any

import numpy as np
from reference_last_stage import Array, float64, positions, weighted_sum


def cam(activations: Any, class_weight: Any) -> Array:
    """CAM, Zhou et al., CVPR 2016, 1512.04150: `(1/Z) Σ_k W_ck A_k`; Z because the layer is mean-pooled, not summed."""
    activations = float64(activations)
    return weighted_sum(class_weight, activations) / len(positions(activations))


def einsum_cam(activations: Any, head_weight: Any, logit_gradients: Any) -> Array:
    """EinsumCAM with a linear head, no paper: `(1/Z) Σ_k w_k A_k`, `w_k = Σ_m (∂y/∂logit_m) W_mk`.

    For a class logit `logit_gradients` is one-hot, and the map is CAM.
    """
    activations, head_weight, logit_gradients = float64(activations), float64(head_weight), float64(logit_gradients)
    weights = np.zeros(len(activations))
    for k in range(len(activations)):
        for m in range(len(head_weight)):
            weights[k] += logit_gradients[m] * head_weight[m, k]
    return cam(activations, weights)


def einsum_cam_without_head(activations: Any, weight_gradient: Any, output_axis: int = 0) -> Array:
    """EinsumCAM without a linear head, no paper: `Σ_k w_k A_k`, no factor 1/Z.

    w = gradient of the sum of the layer's output with respect to the layer's own weight, for this sample alone,
    averaged over all its axes but the output channel (axis 1 of transposed convolutions).
    """
    weight_gradient = np.moveaxis(float64(weight_gradient), output_axis, 0)
    return weighted_sum([channel.mean() for channel in weight_gradient], activations)


def fem(activations: Any, sigmas: float = 2.0) -> Array:
    """FEM, Fuad et al., IPTA 2020: `w_k = mean_s[A_k > μ_k + sigmas·σ_k]`, population σ; `Σ_k w_k A_k`.

    Ambiguous: another reading of the paper is `Σ_k μ_k [A_k > μ_k + sigmas·σ_k]`. A constant channel weighs 0.
    """
    activations = float64(activations)
    weights = np.zeros(len(activations))
    for k in range(len(activations)):
        values = [activations[(k, *s)] for s in positions(activations)]
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        if max(values) > min(values):
            weights[k] = sum(value > mean + sigmas * deviation for value in values) / len(values)
    return weighted_sum(weights, activations)


def lafam(activations: Any) -> Array:
    """LaFAM, Karjauv & Albayrak 2024, 2407.06059: `mean_k A_k`."""
    activations = float64(activations)
    return weighted_sum(np.ones(len(activations)), activations) / len(activations)


def random_cam(activations: Any, weights: Any) -> Array:
    """RandomCAM, a baseline without a paper: `Σ_k w_k A_k` with the weights that were drawn from U(−1, 1)."""
    return weighted_sum(weights, activations)
