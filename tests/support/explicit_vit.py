"""TinyViT written out: every attention matrix, and the score of the tokens behind every block, as nodes of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import reference as ref
import torch
from cases import Sample
from torch import Tensor

HEADS = 2


@dataclass(frozen=True)
class ExplicitViT:
    """One image in a TinyViT."""

    sample: Sample

    @cached_property
    def blocks(self) -> list[dict[str, Tensor]]:
        """For each block its attention `(heads, queries, keys)`, projections, and the tokens that leave it."""
        model, found = self.sample.model, []
        with torch.enable_grad():
            tokens = model.tokens(self.sample.image[None])[0]
            for block in model.blocks:
                entered = tokens
                normalized = block.norm1(tokens)
                queries, keys, values = (
                    torch.nn.functional.linear(normalized, weight, bias).unflatten(1, (HEADS, -1)).transpose(0, 1)
                    for weight, bias in zip(
                        block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True
                    )
                )
                attention = (queries @ keys.mT / sqrt(queries.shape[-1])).softmax(-1)
                mixed = (attention @ values).transpose(0, 1).flatten(1)
                tokens = tokens + block.attn.out_proj(mixed)
                tokens = tokens + block.mlp(block.norm2(tokens))
                joined = {
                    name: one.transpose(0, 1).flatten(1)
                    for name, one in (("queries", queries), ("keys", keys), ("values", values))
                }
                found.append(
                    {
                        "attention": attention,
                        "mixed": mixed,
                        "tokens": tokens,
                        "entered": entered,
                        "normalized": normalized,
                        **joined,
                    }
                )
        return found

    def score(self, tokens: Tensor) -> Tensor:
        """The score of these tokens behind the last block."""
        model = self.sample.model
        tokens = model.norm(tokens)
        pooled = tokens[0] if model.pool == "token" else tokens[self.prefix :].mean(0)
        return self.sample.objective(model.head(pooled), self.sample.target)

    @property
    def prefix(self) -> int:
        return self.sample.model.prefix

    @property
    def attentions(self) -> list[Tensor]:
        return [block["attention"] for block in self.blocks]

    @cached_property
    def gradients(self) -> list[Tensor]:
        """Of the model's score, for every attention."""
        score = self.score(self.blocks[-1]["tokens"])
        return list(torch.autograd.grad(score, self.attentions, retain_graph=True))

    @property
    def own_gradients(self) -> list[Tensor]:
        """Of each block's own score, for its attention."""
        return [
            torch.autograd.grad(self.score(block["tokens"]), block["attention"], retain_graph=True)[0]
            for block in self.blocks
        ]

    def on_grid(self, patches: Any) -> Any:
        return patches.reshape(self.sample.case.grid)

    @property
    def has_class_token(self) -> bool:
        return self.prefix > 0


def attention_rollout(sample: Sample, **options: Any) -> Any:
    vit = ExplicitViT(sample)
    return vit.on_grid(
        ref.attention_rollout(vit.attentions, prefix=vit.prefix, class_token=vit.has_class_token, **options)
    )


def generic_attention(sample: Sample) -> Any:
    vit = ExplicitViT(sample)
    return vit.on_grid(ref.generic_attention(vit.attentions, vit.gradients, vit.prefix, vit.has_class_token))


def legrad(sample: Sample, blocks: int = 0) -> Any:
    vit = ExplicitViT(sample)
    return vit.on_grid(ref.legrad(vit.own_gradients[-blocks:], vit.prefix))


def grad_eclip(sample: Sample) -> Any:
    vit = ExplicitViT(sample)
    last = vit.blocks[-1]
    (gradient,) = torch.autograd.grad(vit.score(last["tokens"]), last["mixed"], retain_graph=True)
    patches = slice(vit.prefix, None)
    saliency = ref.grad_eclip(gradient[0], last["values"][patches], last["queries"][0], last["keys"][patches])
    return vit.on_grid(saliency)


def vit_recipro_cam(sample: Sample, window: int = 3) -> Any:
    vit = ExplicitViT(sample)
    last, block = vit.blocks[-1], sample.model.blocks[-1]

    def replay(residual: Any, normalized: Any) -> float:
        with torch.no_grad():
            residual, y = torch.as_tensor(residual), torch.as_tensor(normalized)[None]
            tokens = residual + block.attn(y, y, y, need_weights=False)[0][0]
            return float(vit.score(tokens + block.mlp(block.norm2(tokens))))

    grid = sample.case.grid
    return ref.vit_recipro_cam(last["entered"], last["normalized"], grid, replay, vit.prefix, window)
