"""Measure how many directions features span: effective rank, principal components, redundant units."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.errors import NonFiniteError, ShapeError


def effective_rank(features: Float[Tensor, "n k"]) -> float:
    r"""Return the number of directions that features use, as a real number.

    $\exp(-\sum_i p_i \ln p_i)$ with $p = \sigma / \sum \sigma$, where $\sigma$ are the singular values of the centered
    features: Roy & Vetterli, EUSIPCO 2007; used as RankMe by Garrido et al., ICML 2023.

    Args:
        features: one row per sample.

    Returns:
        From 1 to min(n - 1, k); 0 for features that are the same for all samples.

    Raises:
        NonFiniteError: NaN or infinite features.

    Example:
        >>> effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        2.0
    """
    values = _singular_values(features)
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def d99(features: Float[Tensor, "n k"]) -> int:
    """Return how many principal components carry 99 % of the variance; 0 if there is no variance.

    Divided by k, this number is the saturation of a layer: Richter et al., ICANN 2020.

    Args:
        features: one row per sample.

    Raises:
        NonFiniteError: NaN or infinite features.
    """
    variance = _singular_values(features).square()
    if variance.sum() == 0:
        return 0
    share = variance.cumsum(0) / variance.sum()
    return int((share < 0.99).sum()) + 1


def redundancy(features: Float[Tensor, "n k"], threshold: float = 0.95) -> float:
    """Return the share of units that nearly repeat another unit.

    A unit repeats another if the absolute value of their correlation is above the threshold. Constant units correlate
    with no other unit.

    Args:
        features: one row per sample, one column per unit.
        threshold: limit of the absolute correlation.

    Raises:
        NonFiniteError: NaN or infinite features.
        ShapeError: features without units.
    """
    centered = _centered(features)
    if centered.shape[1] == 0:
        raise ShapeError("features have no units; expected (n, k) with k of at least 1")
    norms = centered.norm(dim=0)
    scaled = centered / norms.where(norms > 0, torch.inf)
    correlations = (scaled.mT @ scaled).abs()
    correlations.fill_diagonal_(0)
    return float((correlations > threshold).any(dim=0).double().mean())


def _singular_values(features: Float[Tensor, "n k"]) -> Float[Tensor, " r"]:
    """Return the singular values of the centered features, the largest first."""
    values: Tensor = torch.linalg.svdvals(_centered(features))
    return values


def _centered(features: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Subtract the mean in float64; a unit that varies only by rounding errors becomes exactly 0."""
    if not bool(features.isfinite().all()):
        raise NonFiniteError("features hold NaN or infinite values; find their origin with find_nonfinite(model)")
    wide = features.detach().to("cpu", torch.float64)
    centered: Tensor = wide - wide.mean(dim=0)
    noise = torch.finfo(features.dtype).eps * wide.norm(dim=0)
    return centered.where(centered.norm(dim=0) > noise, 0.0)
