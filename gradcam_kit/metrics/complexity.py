"""The simplicity of a map L: the entropy of |L|, and its sparseness, the Gini index."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.metrics.checks import degenerate, usable
from gradcam_kit.metrics.registry import metric
from gradcam_kit.metrics.result import MetricResult, measured
from gradcam_kit.similarity import broken


@metric(
    "entropy",
    better="lower",
    paper="Complexity: Bhatt et al., IJCAI 2020, https://arxiv.org/abs/2005.00631.",
)
def entropy(heatmaps: Float[Tensor, "n *t"]) -> MetricResult:
    """Return the entropy of |L| / sum |L| in nats, for a map L.

    It is 0 for a single nonzero position, log P for a constant map of P positions, and NaN for a map of zeros.
    """
    shares = _magnitudes(heatmaps)
    shares = shares / shares.sum(1, keepdim=True)
    return measured(-torch.xlogy(shares, shares).sum(1), degenerate(heatmaps))


@metric(
    "sparseness",
    better="higher",
    paper="Sparseness: Chalasani et al., ICML 2020, https://arxiv.org/abs/1810.06583.",
)
def sparseness(heatmaps: Float[Tensor, "n *t"]) -> MetricResult:
    """Return the Gini index of |L|, for a map L.

    It is 0 for a constant map, 1 - 1/P for a single nonzero position among P, and NaN for a map of zeros.

    For ascending values v_i with i from 1, the index is 1 - 2 sum_i (v_i / sum v) (P - i + 1/2) / P.
    """
    values = _magnitudes(heatmaps).sort(dim=1).values
    count = values.shape[1]
    weights = (torch.arange(count, 0, -1, device=values.device, dtype=values.dtype) - 0.5) / count
    return measured(1 - 2 * (values @ weights) / values.sum(1), degenerate(heatmaps))


def _magnitudes(heatmaps: Tensor) -> Float[Tensor, "n p"]:
    """Return |L| in float64, NaN for maps that are not finite."""
    return usable(heatmaps).flatten(1).double().abs().masked_fill(broken(heatmaps)[:, None], torch.nan)
