"""Measures of attention heads: how focused each head is, and how similar heads are."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attention_entropy(
    probabilities: Float[Tensor, "n heads q k"], allowed: Bool[Tensor, "#n #heads #q k"] | None = None
) -> Float[Tensor, "n heads"]:
    """Return the entropy of each head's attention: 0 if it attends to one key, 1 if to all keys equally.

    The entropy of each query's attention is divided by the logarithm of the number of its keys, and averaged over the
    queries that have at least two keys.

    Args:
        probabilities: attention after its softmax; rows sum to 1.
        allowed: the keys that a mask allows for each query; None = the keys that any head of the sample attends to.

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
    for i in range(heads):  # a row at a time; all pairs at once would take `heads` times the memory of the attention
        mixed = torch.special.entr((wide[:, i : i + 1] + wide) / 2).sum(dim=-1)
        divergence = (mixed - (entropies[:, i : i + 1] + entropies) / 2) / math.log(2)
        distances[i] = divergence.clamp(0, 1).sqrt().mean(dim=(0, 2))
    return ((distances + distances.mT) / 2).fill_diagonal_(0)


def distance_from_uniform(probabilities: Float[Tensor, "n heads q k"]) -> Float[Tensor, " heads"]:
    """Return the mean Jensen-Shannon distance (base 2) of each head from uniform attention to its keys.

    The keys of a query are those that any head of the sample attends to, so masked keys are ignored.

    Args:
        probabilities: attention after its softmax; rows sum to 1.

    Returns:
        From 0 for a uniform head to less than 1.
    """
    wide = probabilities.detach().to(torch.promote_types(probabilities.dtype, torch.float32))
    allowed = (wide > 0).any(dim=1, keepdim=True)
    uniform = allowed / allowed.sum(dim=-1, keepdim=True).clamp(min=1)
    mixed, own, even = (torch.special.entr(one).sum(dim=-1) for one in ((wide + uniform) / 2, wide, uniform))
    distances: Tensor = ((mixed - (own + even) / 2) / math.log(2)).clamp(0, 1).sqrt().mean(dim=(0, 2))
    return distances


def attention_received(
    probabilities: Float[Tensor, "n heads q k"], queries: Bool[Tensor, "n q"] | None = None
) -> Float[Tensor, "n heads k"]:
    """Return the share of attention that each key gets, averaged over the queries with at least two keys.

    A query with a single key, such as the first query under a causal mask, is left out.

    Args:
        probabilities: attention after its softmax; rows sum to 1.
        queries: the queries to average over; None = all.
    """
    wide = probabilities.detach().to(torch.promote_types(probabilities.dtype, torch.float32))
    counts = (wide > 0).any(dim=1).sum(dim=-1) >= 2
    if queries is not None:
        counts = counts & queries
    total: Tensor = torch.einsum("nhqk,nq->nhk", wide, counts.to(wide.dtype))
    return total / counts.sum(dim=-1).clamp(min=1)[:, None, None]


def redundant_pairs(
    probabilities: Float[Tensor, "n heads q k"], limit: float
) -> tuple[list[tuple[int, int]], Float[Tensor, "heads heads"]]:
    """Return the pairs of heads that repeat each other, and the distances of all pairs.

    Two heads repeat each other if their Jensen-Shannon distance is below `limit`, and below half of the larger of their
    distances from uniform attention, because nearly uniform heads are always close to each other.
    """
    distances, spread = head_distances(probabilities), distance_from_uniform(probabilities)
    most = torch.maximum(spread[:, None], spread[None]) / 2
    close = (distances < limit) & (distances < most)
    pairs = close.triu(diagonal=1).nonzero().tolist()
    return [(first, second) for first, second in pairs], distances


def edge_entropy(
    alpha: Float[Tensor, "edges heads"], targets: Int[Tensor, " edges"], nodes: int
) -> Float[Tensor, "nodes heads"]:
    """Return the entropy of each node's attention to its incoming edges: 0 if it goes to one edge, 1 if to all equally.

    Args:
        alpha: coefficients that sum to 1 over the incoming edges of a node.
        targets: the node that each edge leads to.
        nodes: number of nodes.

    Returns:
        Entropy divided by the logarithm of the degree; NaN for nodes with fewer than two incoming edges.
    """
    wide = alpha.detach().to(torch.promote_types(alpha.dtype, torch.float32))
    total = wide.new_zeros(nodes, wide.shape[1]).index_add(0, targets, torch.special.entr(wide))
    degree = torch.bincount(targets, minlength=nodes).to(wide.dtype)[:, None]
    return (total / degree.clamp(min=2).log()).clamp(0, 1).where(degree >= 2, torch.nan)


def strongest_edge(
    alpha: Float[Tensor, "edges heads"], targets: Int[Tensor, " edges"], nodes: int
) -> Float[Tensor, "nodes heads"]:
    """Return the largest coefficient among the incoming edges of each node; NaN for nodes with fewer than two."""
    wide = alpha.detach().to(torch.promote_types(alpha.dtype, torch.float32))
    index = targets[:, None].expand(-1, wide.shape[1])
    largest = wide.new_zeros(nodes, wide.shape[1]).scatter_reduce(0, index, wide, "amax", include_self=False)
    degree = torch.bincount(targets, minlength=nodes)[:, None]
    return largest.where(degree >= 2, torch.nan)
