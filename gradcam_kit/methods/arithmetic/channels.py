"""Choose channels, take their activations, and find the indices at which conditions hold."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.capture import on_host
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import move, normalize, spatial_mean
from gradcam_kit.methods.contract import gradients_of
from gradcam_kit.types import LayerCapture

Ranking = Literal["std", "gradient", "first-order"]


def check_channels(channels: Any) -> int | float | None:
    """Return `channels` if it is None, a positive int or a share in (0, 1]; raise OptionError otherwise."""
    most = 1 if isinstance(channels, float) else channels
    if channels is not None and (
        isinstance(channels, bool) or not isinstance(channels, int | float) or not 0 < channels <= most
    ):
        raise OptionError(f"channels is {channels!r}; expected None, a positive int, or a share in (0, 1]")
    return channels


def ranked_channels(layer: LayerCapture, channels: int | float, ranking: Ranking) -> Int[Tensor, "n r"]:
    """Return the channels to keep, best first: exactly this many (int) or this share of them (float).

    Args:
        layer: the capture, with gradients if the ranking needs them.
        channels: number of channels, or their share of all.
        ranking: by standard deviation over space ("std"), by mean gradient ("gradient"), or by the first-order change
            of the score when the channel masks the layer ("first-order"): sum_s M_k(s) sum_j A_j(s) G_j(s), with
            activations A, their gradients G, and M_k = A_k normalized to [0, 1].
    """
    total = layer.activations.shape[1]
    count = max(1, round(channels * total)) if isinstance(channels, float) else channels
    if count > total:
        raise OptionError(f"channels is {count}, but layer {layer.layer!r} has {total}; expected from 1 to {total}")
    if ranking == "gradient":
        rank = spatial_mean(gradients_of(layer)).flatten(1)
    elif ranking == "first-order":
        masks = normalize(layer.activations.flatten(0, 1)).view_as(layer.activations)
        evidence = (layer.activations * gradients_of(layer)).sum(1)
        rank = torch.einsum("nk...,n...->nk", masks, evidence)
    else:
        rank = layer.activations.flatten(2).std(2, correction=0)
    return rank.topk(count, dim=1).indices


def where_true(*conditions: Bool[Tensor, "..."]) -> list[Int[Tensor, "m axes"]]:
    """Return the indices at which each condition holds, with a single synchronization for all conditions."""
    host = on_host(torch.cat([condition.flatten() for condition in conditions]))
    parts = host.split([condition.numel() for condition in conditions])
    return [
        move(part.view(condition.shape).nonzero(), condition.device)
        for part, condition in zip(parts, conditions, strict=True)
    ]


def take_channels(activations: Float[Tensor, "n k *s"], channels: Int[Tensor, "n r"]) -> Float[Tensor, "n r *s"]:
    """Return the activations of the given channels of each sample."""
    positions = activations.shape[2:]
    return activations.gather(1, channels.view(*channels.shape, *(1 for _ in positions)).expand(-1, -1, *positions))
