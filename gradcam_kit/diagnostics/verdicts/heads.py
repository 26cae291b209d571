"""Verdicts on attention heads: redundant, focused on one token, uniform, or dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.maths.heads import attention_entropy, attention_received, redundant_pairs
from gradcam_kit.diagnostics.thresholds import Thresholds

SEPARATORS = frozenset(
    ("[SEP]", "[CLS]", "</s>", "<s>", "<sep>", "<cls>", "<bos>", "<eos>", "<|endoftext|>", "<|startoftext|>")
)
"""Special tokens that do not represent a word, as tokenizers spell them."""


@dataclass(frozen=True)
class HeadRow:
    """Statistics of one head of one layer, averaged over samples and calls.

    Attributes:
        layer: dotted name of the module.
        head: index of the head.
        entropy: 0 if the head attends to one key, 1 if it attends to all keys equally.
        nearest: index of the most similar other head of the layer; None if the layer has one head.
        distance: Jensen-Shannon distance to the nearest head, from 0 to 1.
        sink: the largest share of attention that one token gets, or all separators together.
        sink_token: description of this token.
        output_norm: mean norm of the head's output per sample; None if it was not observed.
        flags: any of "redundant", "sink", "uniform" and "dead".
    """

    layer: str
    head: int
    entropy: float
    nearest: int | None
    distance: float | None
    sink: float
    sink_token: str
    output_norm: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class LayerHeads:
    """The data from which the heads of one layer are judged.

    Attributes:
        name: dotted name of the module.
        probabilities: attention of all samples and calls of the same shape, `(n, heads, q, k)`.
        output_norm: norm of each head's output, `(n, heads)`, or None.
        tokens: words of each sample, or None.
        has_class_token: whether the first token is a class token.
    """

    name: str
    probabilities: Tensor
    output_norm: Tensor | None
    tokens: Sequence[Sequence[str]] | None
    has_class_token: bool


def judge(layer: LayerHeads, limits: Thresholds) -> tuple[list[HeadRow], list[Finding]]:
    """Return one row for each head of a layer, and the findings about the layer."""
    p = layer.probabilities
    n, heads = p.shape[:2]
    entropies = attention_entropy(p).mean(0).tolist()
    pairs, distances = redundant_pairs(p, limits.head_distance)
    repeated = {head for pair in pairs for head in pair}
    sinks = _sinks(layer, limits.sink)
    norms = None if layer.output_norm is None else layer.output_norm.mean(0).tolist()
    nearest = (distances + 2 * torch.eye(heads, dtype=distances.dtype, device=distances.device)).min(1)
    near, index = nearest.values.tolist(), nearest.indices.tolist()
    rows = []
    for head in range(heads):
        share, token = sinks[head]
        is_dead = norms is not None and norms[head] == 0
        flags = {
            "redundant": head in repeated,
            "sink": share > limits.sink,
            "uniform": entropies[head] > limits.uniform,
            "dead": is_dead,
        }
        rows.append(
            HeadRow(
                layer.name,
                head,
                entropies[head],
                index[head] if heads > 1 else None,
                near[head] if heads > 1 else None,
                share,
                token,
                None if norms is None else norms[head],
                tuple(name for name, applies in flags.items() if applies),
            )
        )
    return rows, _findings(layer, rows, pairs, distances, n, limits)


def _findings(
    layer: LayerHeads,
    rows: list[HeadRow],
    pairs: list[tuple[int, int]],
    distances: Tensor,
    n: int,
    limits: Thresholds,
) -> list[Finding]:
    found = []
    if pairs:
        shown = ", ".join(f"{first} and {second}" for first, second in pairs[:4]) + ", ..." * (len(pairs) > 4)
        message = f"Heads that look at the same keys: {shown}"
        value = min(float(distances[pair]) for pair in pairs)
        found.append(
            Finding(
                "note", "redundant-heads", layer.name, message, value, limits.head_distance, n, advice.REDUNDANT_HEADS,
                "Jensen-Shannon distance, base 2; the limit is a convention",
            )
        )  # fmt: skip
    found += [
        Finding(
            "note", "sink", layer.name, f"Head {row.head} attends almost only to {row.sink_token}",
            row.sink, limits.sink, n, advice.SINK, "Clark et al. 2019; Xiao et al. 2024",
        )
        for row in rows
        if "sink" in row.flags
    ]  # fmt: skip
    dead = [row.head for row in rows if "dead" in row.flags]
    if dead:
        message = f"Heads that return exactly 0: {', '.join(map(str, dead))}"
        share = len(dead) / len(rows)
        found.append(Finding("note", "dead", layer.name, message, share, 0.0, n, advice.DEAD_HEAD, "definition"))
    return found


def _sinks(layer: LayerHeads, limit: float) -> list[tuple[float, str]]:
    """Return the share and the name of the token, or of all separators, that each head attends to most."""
    received = attention_received(layer.probabilities)
    n, _, keys = received.shape
    words = layer.tokens if layer.tokens and all(len(own) == keys for own in layer.tokens) else None
    of = [words[i % len(words)] for i in range(n)] if words else []  # the samples repeat in order for each call
    shares, places = received.mean(0).max(-1)
    best = [
        (share, _token_name(layer, of, place)) for share, place in zip(shares.tolist(), places.tolist(), strict=True)
    ]
    if of:
        marks = torch.tensor([[word in SEPARATORS for word in own] for own in of], device=received.device)
        separators = (received * marks[:, None]).sum(-1).mean(0).tolist()
        best = [
            (total, "separator tokens") if total > own[0] and own[0] <= limit else own
            for own, total in zip(best, separators, strict=True)
        ]
    return best


def _token_name(layer: LayerHeads, of: Sequence[Sequence[str]], place: int) -> str:
    if layer.has_class_token and place == 0:
        return "the class token"
    found = {own[place] for own in of}
    if len(found) == 1:
        return f"token {place} ({found.pop()!r})"
    return "the first token" if place == 0 else f"token {place}"
