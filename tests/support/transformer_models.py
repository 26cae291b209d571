"""Small seeded transformers: one network with its attention computed in every way, and libraries' networks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torchvision
from models import seeded
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

KINDS = ("explicit", "sdpa", "flat", "module", "mha", "mha weights", "half scaled", "in place")
"""Ways of computing the same attention."""


class Attention(nn.Module):
    """Self-attention of two heads; `seen` keeps what the explicit way computes, for autograd."""

    def __init__(self, width: int, kind: str, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.kind, self.heads, self.seen = kind, heads, {}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind.startswith("mha"):
            weights = (self.qkv.weight, self.qkv.bias, None, None, False, 0.0, self.proj.weight, self.proj.bias)
            x = x.transpose(0, 1)
            output, _ = functional.multi_head_attention_forward(
                x, x, x, x.shape[-1], self.heads, *weights, training=False, need_weights="weights" in self.kind
            )
            return output.transpose(0, 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(self.mix(q, k, v).transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = 1 / math.sqrt(q.shape[-1])
        if self.kind == "sdpa":
            return functional.scaled_dot_product_attention(q, k, v)
        if self.kind == "flat":
            weights = functional.softmax(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT) * scale, dim=2)
            return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, q.shape[:2])
        if self.kind == "module":
            return torch.matmul(self.softmax(torch.matmul(q, k.transpose(-2, -1)) * scale), v)
        if self.kind == "half scaled":
            root = math.sqrt(scale)
            return torch.softmax((q * root) @ (k * root).mT, -1) @ v
        weights = (q @ k.mT * scale).softmax(-1)
        self.seen = {"q": q, "k": k, "v": v, "p": weights}
        output = weights @ v
        self.seen["output"] = output
        if self.kind == "in place":
            weights.mul_(0)
        return output


class PlainBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, kind: str, options: set[str]) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, kind)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.options = options

    def forward(self, x: Tensor) -> Any:
        if "shift" in self.options:
            x = x + torch.arange(8) / 2
        if "shift in place" in self.options:
            x.add_(torch.arange(8) / 2)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return (x, None) if "tuples" in self.options else x


class PlainViT(nn.Module):
    """Patches of 4x4 pixels, three blocks, pooling by the class token or by the mean of the patches.

    Options: "shift" and "shift in place" of a block's input, "tuples" as the blocks' output, "checkpoint", "reentrant
    checkpoint", "shared" (the last two blocks are one module).
    """

    def __init__(
        self, kind: str = "explicit", prefix: int = 1, pool: str = "token", tokens: int = 12, *options: str
    ) -> None:
        super().__init__()
        width, self.options = 8, set(options)
        self.patch, self.pool, self.prefix = nn.Conv2d(3, width, 4, stride=4), pool, prefix
        if prefix and pool == "token":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers := prefix - (pool == "token"):
            self.reg_token = nn.Parameter(torch.zeros(1, registers, width))
        self.position = nn.Parameter(torch.zeros(1, prefix + tokens, width))
        blocks = [PlainBlock(width, kind, self.options) for _ in range(3)]
        self.blocks = nn.ModuleList([*blocks[:2], blocks[1]] if "shared" in self.options else blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        extra = [
            getattr(self, name).expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if hasattr(self, name)
        ]
        x = torch.cat([*extra, x], 1) + self.position
        for block in self.blocks:
            if "checkpoint" in " ".join(self.options):
                x = checkpoint(block, x, use_reentrant="reentrant checkpoint" in self.options)
            else:
                x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.classify(x)

    def classify(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.head(x[:, 0] if self.pool == "token" else x[:, self.prefix :].mean(1))


def plain_vit(kind: str = "explicit", *options: str, **parts: Any) -> nn.Module:
    """A seeded PlainViT in float64 for images of 16x12."""
    parts = {"prefix": 1, "pool": "token", "tokens": 12, **parts}
    return seeded(PlainViT(kind, parts["prefix"], parts["pool"], parts["tokens"], *options)).double()


class EncoderModel(nn.Module):
    """torch's own encoder, whose closed fast path is taken in eval mode."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.patch, self.batch_first = nn.Conv2d(3, 8, 4, stride=4), batch_first
        self.position = nn.Parameter(torch.zeros(1, 12, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))


# Networks of libraries, as small as they can be, with drawn weights and seven classes


def drawn(network: nn.Module) -> nn.Module:
    """Every matrix drawn anew, because some heads start as zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def torchvision_vit() -> nn.Module:
    return drawn(torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=7))


def torchvision_swin() -> nn.Module:
    return drawn(torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=7))


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        return drawn(timm.create_model(name, pretrained=False, num_classes=7, **options))


def timm_vit(name: str = "vit_tiny_patch16_224", size: Any = 64, **options: Any) -> nn.Module:
    return timm_model(name, img_size=size, embed_dim=24, depth=3, num_heads=2, **options)


def timm_swin(name: str = "swin_tiny_patch4_window7_224", size: Any = 64) -> nn.Module:
    return timm_model(name, img_size=size, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2))


_TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_STAGES = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}


def hugging_face(kind: str, attention: str = "sdpa", **options: Any) -> nn.Module:
    """A classifier with a tiny configuration: 32x32 pixels and patches of 8x8 unless said otherwise."""
    import transformers

    if kind.startswith("Dinov2") or kind in ("ViT", "DeiT", "Beit"):
        options = {**_TINY, "image_size": 32, "patch_size": 8, **options}
        if not kind.startswith("Dinov2"):
            options["intermediate_size"] = 32
    elif kind.startswith("Swin"):
        options = {**_STAGES, "image_size": 64, **options}
    if kind != "ConvNext":
        options["attn_implementation"] = attention
    config = getattr(transformers, f"{kind}Config")(num_labels=7, **options)
    with torch.random.fork_rng(devices=[]):
        return drawn(getattr(transformers, f"{kind}ForImageClassification")(config))


def hugging_face_clip(attention: str = "sdpa") -> nn.Module:
    """CLIP with 32x32 pixels, patches of 8x8, and 50 words."""
    import transformers

    shared = {**_TINY, "intermediate_size": 32}
    words = {"vocab_size": 50, "max_position_embeddings": 20, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(
        text_config={**shared, **words},
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=8,
        attn_implementation=attention,
    )
    with torch.random.fork_rng(devices=[]):
        return drawn(transformers.CLIPModel(config))
