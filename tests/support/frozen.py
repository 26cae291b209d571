"""Networks whose constant factors are written out with `.detach()`: what balanced gradients are, without any hook."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from models import Built
from torch import Tensor, nn
from torchvision.ops.misc import SqueezeExcitation


def layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    deviation = (centered.square().mean(-1, keepdim=True) + module.eps).sqrt().detach()
    return module.weight * centered / deviation + module.bias


def attention(module: nn.MultiheadAttention, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    projected = nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias)
    q, k, v = projected.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    probabilities = (q @ k.mT / sqrt(q.shape[-1])).softmax(-1).detach()
    return module.out_proj((probabilities @ v).transpose(1, 2).flatten(2)), None


def excitation(module: SqueezeExcitation, x: Tensor) -> Tensor:
    return module._scale(x).detach() * x


FROZEN: dict[type[nn.Module], Callable[..., Any]] = {
    nn.LayerNorm: layer_norm,
    nn.MultiheadAttention: attention,
    SqueezeExcitation: excitation,
    nn.GELU: lambda module, x: x * torch.special.ndtr(x.detach()),
    nn.SiLU: lambda module, x: x * x.detach().sigmoid(),
    nn.Hardswish: lambda module, x: x * nn.functional.hardsigmoid(x.detach()),
}
"""How each kind of module computes the same values with constant factors."""


def frozen(model: nn.Module) -> nn.Module:
    """A copy that computes the same, and whose exact gradients are the balanced ones of the model."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in FROZEN:
                setattr(module, name, Frozen(child))
    return model


class Frozen(Built):
    def __init__(self, module: nn.Module) -> None:
        super().__init__(lambda own, *args, **kwargs: FROZEN[type(module)](own.module, *args, **kwargs), module=module)
