"""Attention heads in numbers: how focused each of them is, and how alike they are."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attention_entropy(
    probabilities: Float[Tensor, "n heads q k"], allowed: Bool[Tensor, "#n #heads #q k"] | None = None
) -> Float[Tensor, "n heads"]:
    """Return how spread the attention of each head is: 0 looks at one key, 1 at all alike.

    The entropy of each query's attention is divided by the logarithm of the number of its keys, and averaged over the
    queries that have at least two keys.

    Args:
        probabilities: attention after its softmax; rows sum to 1.
        allowed: the keys that a mask leaves to each query; None = those that any head of the sample looks at.

    Returns:
        From 0 to 1; 0 where no query has two keys.

    Example:
        >>> attention_entropy(torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]]))
        tensor([[0., 1.]])
    """
    wide = probabilities.detach().to(torch.promote_types(probabilities.dtype, torch.float32))
    if allowed is None:
        allowed = (wide > 0).any(dim=1, keepdim=True)
    keys = allowed.sum(dim=-1).expand(wide.shape[:3])
    entropies = torch.special.entr(wide).sum(dim=-1) / keys.clamp(min=2).to(wide.dtype).log()
    counts = keys >= 2
    mean: Tensor = (entropies * counts).sum(dim=-1) / counts.sum(dim=-1).clamp(min=1)
    return mean.clamp(0, 1)


def head_distances(probabilities: Float[Tensor, "n heads q k"]) -> Float[Tensor, "heads heads"]:
    """Return the mean Jensen-Shannon distance (base 2) of each pair of heads over samples and queries.

    Args:
        probabilities: attention after its softmax; rows sum to 1.

    Returns:
        From 0 (the same attention) to 1 (no key in common); the diagonal is 0.
    """
    wide = probabilities.detach().to(torch.promote_types(probabilities.dtype, torch.float32))
    entropies = torch.special.entr(wide).sum(dim=-1)
    heads = wide.shape[1]
    distances = wide.new_zeros(heads, heads)
    for i in range(heads):  # a row at a time, because all pairs at once would hold heads times the attention
        mixed = torch.special.entr((wide[:, i : i + 1] + wide) / 2).sum(dim=-1)
        divergence = (mixed - (entropies[:, i : i + 1] + entropies) / 2) / math.log(2)
        distances[i] = divergence.clamp(0, 1).sqrt().mean(dim=(0, 2))
    return ((distances + distances.mT) / 2).fill_diagonal_(0)
