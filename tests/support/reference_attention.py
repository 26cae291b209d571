"""Slow transcriptions of the attention methods; per block `(heads, queries, keys)` of one sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from reference_last_stage import Array, float64, normalize_minmax


def patch_row(relevance: Any, prefix: int, class_token: bool) -> Array:
    """Row of the class token without prefix columns; mean over the patch rows if there is no class token."""
    relevance = float64(relevance)
    rows = [relevance[0]] if class_token else list(relevance[prefix:])
    return sum(row[prefix:] for row in rows) / len(rows)


def attention_rollout(
    attentions: Sequence[Any], heads: str = "mean", discard: float = 0.0, prefix: int = 1, class_token: bool = True
) -> Array:
    """Attention rollout, Abnar & Zuidema, ACL 2020, 2005.00928: `Â_l = rownorm(mean_heads a_l + I)`, `R = Â_L ⋯ Â_1`.

    One value per patch. Ambiguous: `discard`, which is not in the paper, zeroes the ⌊discard · q · k⌋ smallest entries
    of a block's fused attention before I is added; no entry is exempt, ties go by position.
    """
    rollout = np.eye(float64(attentions[0]).shape[-1])
    for attention in attentions:
        fused = {"mean": np.mean, "max": np.max, "min": np.min}[heads](float64(attention), axis=0)
        for index in np.argsort(fused, axis=None, kind="stable")[: int(discard * fused.size)]:
            fused[np.unravel_index(index, fused.shape)] = 0.0
        mixed = fused + np.eye(len(fused))
        for query in range(len(mixed)):
            mixed[query] /= sum(mixed[query])
        rollout = mixed @ rollout
    return patch_row(rollout, prefix, class_token)


def generic_attention(
    attentions: Sequence[Any], gradients: Sequence[Any], prefix: int = 1, class_token: bool = True
) -> Array:
    """Generic attention, Chefer et al., ICCV 2021, 2103.15679: `Ā_l = mean_heads ReLU(∇a_l ⊙ a_l)`, `R ← R + Ā_l R`.

    R starts as I, first block first (Eqs. 5 and 6 of the paper). One value per patch.
    """
    relevance = np.eye(float64(attentions[0]).shape[-1])
    for attention, gradient in zip(attentions, gradients, strict=True):
        attention, gradient = float64(attention), float64(gradient)
        mean_heads = np.zeros(attention.shape[1:])
        for head, query, key in np.ndindex(*attention.shape):
            product = attention[head, query, key] * gradient[head, query, key]
            mean_heads[query, key] += max(product, 0.0) / len(attention)
        relevance = relevance + mean_heads @ relevance
    return patch_row(relevance, prefix, class_token)


def legrad(gradients: Sequence[Any], prefix: int = 1) -> Array:
    """LeGrad, Bousselham et al., ICCV 2025, 2404.03214: mean over blocks of `mean_{heads, queries} ReLU(∂y_l/∂a_l)`.

    One value per patch; each gradient is of its own block's score. Unconfirmed: prefix queries count like the others.
    """
    total = np.zeros(float64(gradients[0]).shape[-1])
    for gradient in gradients:
        gradient = float64(gradient)
        heads, queries, keys = gradient.shape
        for head, query, key in np.ndindex(heads, queries, keys):
            total[key] += max(gradient[head, query, key], 0.0) / (heads * queries)
    return total[prefix:] / len(gradients)


def cosine(first: Any, second: Any) -> float:
    """`⟨a, b⟩ / (|a| |b|)`."""
    first, second = float64(first), float64(second)
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def grad_eclip(gradient: Any, values: Any, query: Any, keys: Any) -> Array:
    """Grad-ECLIP, Zhao et al., ICML 2024: `λ_i Σ_d G_d v_{i,d}`, `λ = N(cos(query_cls, key_i))` over the patches.

    `gradient` `(d)` at the class token of the last attention output, `values` and `keys` `(patches, d)` without prefix.
    Unconfirmed: heads are concatenated in d; before or after the output projection is the caller's choice.
    """
    gradient, values, keys = float64(gradient), float64(values), float64(keys)
    loose = normalize_minmax([cosine(query, key) for key in keys])
    saliency = np.zeros(len(values))
    for patch in range(len(values)):
        saliency[patch] = loose[patch] * sum(gradient[d] * values[patch, d] for d in range(len(gradient)))
    return saliency
