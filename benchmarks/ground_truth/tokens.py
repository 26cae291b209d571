"""Tests on small vision transformers, trained in seconds to name the color of a square among gray ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torchvision.models import SwinTransformer

from benchmarks.ground_truth.scoring import (
    DELETION,
    SIXTH,
    TRUTHS,
    Found,
    Measure,
    Plan,
    Subject,
    Test,
    score_all,
    score_each,
    share,
)
from benchmarks.ground_truth.training import accuracy, train
from gradcam_kit.metrics import deletion

_SIDE, _SQUARE, _CELL = 32, 7, 8
_COLORS = torch.tensor([[1.5, -0.5, -0.5], [-0.5, 1.5, -0.5], [-0.5, -0.5, 1.5], [1.2, 1.2, -1.0]])
_TRAINING, _STEPS, _IMAGES = 1000, 220, 16
_FRAME = 3
OF_EMPTY = "probability of the color that is named of an empty picture"
_REMOVALS = 32
"""Number of steps of deletion, each of 32 pixels. With 224 steps, scores differ by less than 0.01."""


class Block(nn.Module):
    """A transformer block: attention and an MLP, each after a normalization."""

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
    """A vision transformer with three blocks on 8 x 8 patches of 4 x 4 pixels.

    The head reads the class token, or the mean of all tokens if there is no class token.
    """

    def __init__(self, width: int = 32, classes: int = 4, *, has_class_token: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width)) if has_class_token else None
        self.position = nn.Parameter(0.02 * torch.randn(1, int(has_class_token) + (_SIDE // 4) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.position))
        logits: Tensor = self.head(tokens.mean(1) if self.cls_token is None else tokens[:, 0])
        return logits


def small_swin() -> SwinTransformer:
    """Return a Swin transformer: two stages of two blocks, windows of 4 x 4 patches, shifted in every second block."""
    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        mlp_ratio=2.0,
        stochastic_depth_prob=0.0,
        num_classes=len(_COLORS),
    )


@dataclass(frozen=True)
class Family:
    """A family of transformers; `layer` is the last layer from whose output gradients reach all patches."""

    build: Callable[[], nn.Module]
    layer: str


_CLASS_TOKEN = Family(SmallViT, "blocks.2.norm1")
_MEAN = Family(partial(SmallViT, has_class_token=False), "blocks.2.norm1")
_WINDOWS = Family(small_swin, "features.3.1.norm1")


def pictures(n: int, seed: int, colored: int = 1, frame: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Draw four squares on noise: the first `colored` squares in different colors, all others in gray.

    Args:
        n: number of images.
        seed: seed of positions, colors and noise.
        colored: number of squares with a color.
        frame: also draw a frame in a random color, and place the squares inside it.

    Returns:
        Images; the colors `(n, colored)`; the masks of the colored squares, `(n, colored, h, w)`.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(n, 3, _SIDE, _SIDE, generator=generator)
    labels = torch.arange(n)[:, None] % len(_COLORS)
    if colored > 1:
        labels = torch.stack([torch.randperm(len(_COLORS), generator=generator)[:colored] for _ in range(n)])
    masks = torch.zeros(n, colored, _SIDE, _SIDE, dtype=torch.bool)
    margin = _CELL // 2 if frame else 0
    per_side = (_SIDE - 2 * margin) // _CELL
    for i in range(n):
        if frame:
            border = torch.ones(_SIDE, _SIDE, dtype=torch.bool)
            border[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
            ignored = int(torch.randint(len(_COLORS), (), generator=generator))
            images[i] += border * _COLORS[ignored].view(3, 1, 1)
        for number, place in enumerate(torch.randperm(per_side**2, generator=generator)[:4].tolist()):
            shift = torch.randint(_CELL - _SQUARE + 1, (2,), generator=generator).tolist()
            top, left = (margin + _CELL * at + by for at, by in zip(divmod(place, per_side), shift, strict=True))
            where = (slice(top, top + _SQUARE), slice(left, left + _SQUARE))
            color = _COLORS[labels[i, number]] if number < colored else torch.ones(3)
            images[(i, slice(None), *where)] += color.view(3, 1, 1)
            if number < colored:
                masks[(i, number, *where)] = True
    return images, labels, masks


def transformer(name: str, family: Family, plan: Plan, frame: bool = False) -> dict[str, Found]:
    """Score all methods on a transformer, at the layer of its family or at layers that a method chooses itself.

    Without a frame, also score how fast the probability falls when pixels are removed in the order of the map.
    """
    images, labels, _ = pictures(_TRAINING, plan.seed + 1, frame=frame)
    model = train(family.build, images, labels[:, 0], steps=plan.count(_STEPS), seed=plan.seed)
    tests, truth, masks = pictures(plan.count(_IMAGES), plan.seed + 2, frame=frame)
    subject = Subject(model, family.layer, tests, truth[:, 0], masks[:, 0], parts=SIXTH, has_tokens=True)
    measures = [share] if frame else [share, _fall_of_score(subject)]
    found = dict(zip((name, name + DELETION), score_each(subject, plan, measures), strict=False))
    for one in found.values():
        one.notes["accuracy"] = accuracy(model, tests, truth[:, 0])
    if not frame:
        _add_truths(found[name + DELETION], subject)
        with torch.inference_mode():
            empty = model(torch.zeros_like(tests[:1])).softmax(1)
        found[name + DELETION].notes[OF_EMPTY] = float(empty.max())
    return found


def _fall_of_score(subject: Subject) -> Measure:
    """Return a measure by deletion: positions are replaced by 0, the mean of the noise, in the order of the map."""

    def rescore(rows: Tensor, index: Tensor) -> Tensor:
        with torch.inference_mode():
            probabilities: Tensor = subject.model(rows).softmax(1)
        return probabilities[torch.arange(len(index)), subject.targets[index]]

    def measure(heatmaps: Tensor, masks: Tensor) -> Tensor:
        images = subject.images[: len(heatmaps)]
        return deletion(heatmaps, images, rescore, steps=_REMOVALS, batch_size=128).values

    return measure


def _add_truths(found: Found, subject: Subject) -> None:
    """Add the scores of the true mask, as it is and at the resolution of the patches, enlarged like a map."""
    measure, mask = _fall_of_score(subject), subject.masks.float()
    coarse = adaptive_avg_pool2d(mask[:, None], _SIDE // 4)
    enlarged = interpolate(coarse, size=_SIDE, mode="bilinear", align_corners=False)[:, 0]
    for row, heatmaps in zip(TRUTHS, (mask, enlarged), strict=True):
        found.scores[row] = measure(heatmaps, subject.masks)
    del found.scores["ones"]  # a constant map does not rank positions


def two_colors(plan: Plan) -> dict[str, Found]:
    """Score the maps of both colors in images with two colored squares; training labels are one of the two at random.

    Accuracy is the share of images whose two colors have the highest scores.
    """
    images, labels, _ = pictures(_TRAINING, plan.seed + 3, colored=2)
    model = train(SmallViT, images, labels[:, 0], steps=plan.count(_STEPS), seed=plan.seed)
    tests, truth, masks = pictures(plan.count(_IMAGES), plan.seed + 4, colored=2)
    subject = Subject(model, _CLASS_TOKEN.layer, tests, truth, masks, parts=SIXTH, has_tokens=True)
    found = score_all(subject, plan)
    balanced = replace(plan, methods=[name for name in plan.methods if name == "balanced-cam"])
    others = score_all(replace(subject, masks=masks.flip(1)), balanced).scores
    with torch.inference_mode():
        named = model(tests).topk(2, 1).indices.sort(1).values == truth.sort(1).values
    found.notes["accuracy"] = float(named.all(1).float().mean())
    if "balanced-cam" in others:
        found.notes["share of balanced-cam on the other square"] = float(others["balanced-cam"].nanmean())
    return {"transformer, two": found}


_ON_SQUARE = "share of the map on the colored square"


def _of_family(name: str, question: str, family: Family, frame: bool = False) -> Test:
    """Return the test with one colored square among gray ones, on transformers of one family."""
    run = partial(transformer, name, family, frame=frame)
    return Test(name, question, _ON_SQUARE, run, has_networks=True)


TESTS = (
    _of_family(
        "transformer", "Small vision transformers that name the color of one square among gray ones", _CLASS_TOKEN
    ),
    Test(
        "transformer, two",
        "The same with two colored squares, each explained for its own color",
        "share of the map on the square of the explained color",
        two_colors,
        has_networks=True,
    ),
    _of_family(
        "transformer, ignored",
        "The same with one colored square, and a colored frame that the label ignores",
        _CLASS_TOKEN,
        frame=True,
    ),
    _of_family("transformer, mean", "The same as the first, with a head after the mean of all patches", _MEAN),
    _of_family("transformer, windows", "The same as the first, with shifted windows and merged patches", _WINDOWS),
)
