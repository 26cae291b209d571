"""Attention methods on the small transformer: calls, what they see, and their transcription by plain autograd."""

from __future__ import annotations

from functools import cache
from typing import Any

import reference as ref
import torch
from evidence import Spy, close
from models import images
from torch import Tensor, nn
from transformer_models import PlainViT, plain_vit

from gradcam_kit import METHODS
from gradcam_kit.types import Attention, Evidence, LayerChoice

NAMES = ("attention-rollout", "generic-attention", "legrad", "grad-eclip")
IMAGES = images(2, size=(16, 12)).double()
TARGETS = torch.tensor([[0, 3], [4, 1]])


def explain(name: str, model: nn.Module, x: Tensor = IMAGES, targets: Any = None, **options: Any) -> Any:
    return METHODS[name](model, **options).explain(x, targets)


def saliency(name: str, model: nn.Module, x: Tensor = IMAGES, targets: Any = None, **options: Any) -> Tensor:
    return explain(name, model, x, targets, **options).saliency["<attention>"]


class Watcher(Spy):
    """Keeps the attention that a method sees."""

    layer_choice = LayerChoice.ATTENTION


def attention(model: nn.Module, x: Tensor = IMAGES, needs: Evidence = Evidence.ATTENTION, **options: Any) -> Attention:
    spy = Watcher(model, needs=needs, **options)
    spy.explain(x, 1)
    found = spy.seen["<attention>"].attention
    assert found is not None
    return found


# The transcription of a pass: one sample, plain autograd, nothing of the package


def steps(model: PlainViT, image: Tensor) -> tuple[Tensor, list[dict[str, Tensor]], list[Tensor]]:
    """Logits, what each block's attention computes, and the tokens behind each block."""
    tokens: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _m, _a, out: tokens.append(out)) for block in model.blocks]
    with torch.enable_grad():
        logits = model(image[None])[0]
    for handle in handles:
        handle.remove()
    return logits, [block.attn.seen for block in model.blocks], tokens


def transcribe(name: str, model: PlainViT, image: Tensor, target: int, **options: Any) -> Any:
    logits, seen, tokens = steps(model, image)
    token, prefix = model.pool == "token", model.prefix

    def gradients(score: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        return [found[0] for found in torch.autograd.grad(score, tensors, retain_graph=True)]

    attentions = [one["p"][0].detach() for one in seen]
    if name == "attention-rollout":
        return ref.attention_rollout(attentions, prefix=prefix, class_token=token, **options)
    if name == "generic-attention":
        own = gradients(logits[target], [one["p"] for one in seen])
        return ref.generic_attention(attentions, own, prefix, token)
    if name == "legrad":
        scores = [model.classify(one)[0, target] for one in tokens]
        own = [gradients(score, [one["p"]])[0] for score, one in zip(scores, seen, strict=True)]
        return ref.legrad(own[-options.get("blocks", 3) :], prefix)
    q, k, v = (seen[-1][key][0].transpose(0, 1).flatten(1).detach() for key in "qkv")
    gradient = gradients(logits[target], [seen[-1]["output"]])[0].transpose(0, 1).flatten(1)
    return ref.grad_eclip(gradient[0], v[prefix:], q[0], k[prefix:])


@cache
def expected(name: str, prefix: int, pool: str, options: tuple[tuple[str, Any], ...] = ()) -> Tensor:
    model = plain_vit(prefix=prefix, pool=pool)
    samples = [(x, int(target)) for x, own in zip(IMAGES, TARGETS, strict=True) for target in own]
    maps = [torch.as_tensor(transcribe(name, model, *sample, **dict(options))) for sample in samples]
    return torch.stack(maps).unflatten(0, (2, 2)).unflatten(2, (4, 3))


def same(found: Tensor, other: Tensor, tolerance: float = 1e-10) -> bool:
    return close(found, other, tolerance * float(other.abs().max()))
