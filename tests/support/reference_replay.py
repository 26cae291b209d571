"""Slow transcriptions of the methods that score masked activations; `replay(A)` maps one `(k, *s)` to one float."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from reference_last_stage import Array, float64, positions, weighted_sum

Replay = Callable[[Array], float]


def ablation_cam_weights(activations: Any, replay: Replay, channels: Iterable[int] | None = None) -> Array:
    """Ablation-CAM, Desai & Ramaswamy, WACV 2020: `w_k = (y − y_{\\k}) / |y|`, channel k set to 0.

    The paper divides by y. Ambiguous: for y = 0 the difference itself is the weight (the heatmap ignores the scale);
    channels that are not asked for weigh 0.
    """
    activations = float64(activations)
    score = replay(activations)
    weights = np.zeros(len(activations))
    for k in range(len(activations)) if channels is None else channels:
        ablated = activations.copy()
        ablated[k] = 0.0
        weights[k] = (score - replay(ablated)) / (abs(score) if score != 0 else 1.0)
    return weights


def ablation_cam(activations: Any, replay: Replay, channels: Iterable[int] | None = None) -> Array:
    """Ablation-CAM, Desai & Ramaswamy, WACV 2020: `Σ_k w_k A_k`."""
    return weighted_sum(ablation_cam_weights(activations, replay, channels), activations)


def window_weight(offset: Iterable[int], window: int) -> float:
    """Recipro-CAM's kernel at an offset: one position, or ¼ ½ ¼ along every axis (1/16, 1/8, 1/4 on pictures)."""
    weight = 1.0
    for distance in offset:
        weight *= {1: {0: 1.0}, 3: {-1: 0.25, 0: 0.5, 1: 0.25}}[window].get(distance, 0.0)
    return weight


def recipro_cam(activations: Any, replay: Replay, window: int = 1, mode: str = "mask") -> Array:
    """Recipro-CAM, Byun & Lee, CVPRW 2024, 2209.14074: `S_ij = y(A ⊙ m_ij)`, `S − min S`.

    Unconfirmed for window 3: "mask" weighs the values around (i, j); "spread" (official code) copies the value at
    (i, j) to its neighbors with those weights. Weights that fall off the border are lost.
    """
    activations = float64(activations)
    scores = np.zeros(activations.shape[1:])
    for s in positions(activations):
        kept = np.zeros_like(activations)
        for other in positions(activations):
            weight = window_weight((a - b for a, b in zip(other, s, strict=True)), window)
            for k in range(len(activations)):
                source = {"mask": other, "spread": s}[mode]
                kept[(k, *other)] = weight * activations[(k, *source)]
        scores[s] = replay(kept)
    return scores - scores.min()


def vit_recipro_cam(
    tokens: Any,
    normalized_tokens: Any,
    grid: tuple[int, ...],
    replay: Callable[[Array, Array], float],
    prefix: int = 1,
    window: int = 3,
) -> Array:
    """ViT-Recipro-CAM, Byun & Lee 2023, 2310.02588: Recipro-CAM on the tokens `(tokens, k)` that enter the last block.

    `replay(residual, normalized)` scores both streams masked alike: the block's input on its residual branch and after
    its norm. Prefix tokens are always kept. Unconfirmed: `S − min S` and weights by mask, as for Recipro-CAM.
    """
    tokens, normalized_tokens = float64(tokens), float64(normalized_tokens)
    scores = np.zeros(grid)
    for s in np.ndindex(*grid):
        mask = np.ones((len(tokens), 1))
        for patch, other in enumerate(np.ndindex(*grid)):
            mask[prefix + patch] = window_weight((a - b for a, b in zip(other, s, strict=True)), window)
        scores[s] = replay(tokens * mask, normalized_tokens * mask)
    return scores - scores.min()
