"""A vision transformer, trained in seconds to name the color of a square among gray ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.ground_truth.scoring import Found, Plan, Subject, Test, score_all
from benchmarks.ground_truth.training import accuracy, train

_SIDE, _SQUARE, _CELL = 32, 7, 8
_COLORS = torch.tensor([[1.5, -0.5, -0.5], [-0.5, 1.5, -0.5], [-0.5, -0.5, 1.5], [1.2, 1.2, -1.0]])
_TRAINING, _STEPS, _IMAGES = 1000, 220, 24


class Block(nn.Module):
    """Attention and a hidden layer, each behind a normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class SmallViT(nn.Module):
    """8 x 8 patches of 4 pixels, three blocks, and a head behind the class token."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (_SIDE // 4) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """One colored and three gray squares on noise: images, the color, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(n, 3, _SIDE, _SIDE, generator=generator)
    labels = torch.arange(n) % len(_COLORS)
    masks = torch.zeros(n, _SIDE, _SIDE, dtype=torch.bool)
    per_side = _SIDE // _CELL
    for i in range(n):
        for number, place in enumerate(torch.randperm(per_side**2, generator=generator)[:4].tolist()):
            shift = torch.randint(_CELL - _SQUARE + 1, (2,), generator=generator).tolist()
            top, left = _CELL * (place // per_side) + shift[0], _CELL * (place % per_side) + shift[1]
            where = (slice(top, top + _SQUARE), slice(left, left + _SQUARE))
            images[(i, slice(None), *where)] += (_COLORS[labels[i]] if number == 0 else torch.ones(3)).view(3, 1, 1)
            masks[(i, *where)] = number == 0
    return images, labels, masks


def transformer(plan: Plan) -> dict[str, Found]:
    """All methods at the last layer from which gradients reach the patches, attention methods among them."""
    images, labels, _ = pictures(_TRAINING, plan.seed + 1)
    model = train(SmallViT, images, labels, steps=plan.count(_STEPS), seed=plan.seed)
    tests, truth, masks = pictures(plan.count(_IMAGES), plan.seed + 2)
    found = score_all(Subject(model, "blocks.2.norm1", tests, truth, masks, is_costly=True), plan)
    found.notes = {"accuracy": accuracy(model, tests, truth)}
    return {"transformer": found}


TESTS = (
    Test(
        "transformer",
        "A small vision transformer that names the color of one square among gray ones",
        "share of the map on the colored square",
        transformer,
    ),
)
