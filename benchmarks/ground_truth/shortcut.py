"""Plant a shortcut, a patch that correlates with the label, and measure how much each network relies on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ground_truth.scoring import SIXTH, Found, Plan, Subject, Test, score_all
from benchmarks.ground_truth.training import accuracy, small_network, train
from gradcam_kit.metrics import spearman

CORRELATIONS = (0.0, 0.5, 0.9, 1.0)
_SIDE, _PATCH, _ARM = 32, 5, 4
_TRAINING, _STEPS, _IMAGES = 1200, 260, 20


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images without a patch, the same images with a patch, their labels, and the masks of the patches.

    The images show crosses (class 1) and squares (class 0) of random shade on noise.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.35 * torch.randn(n, 3, _SIDE, _SIDE, generator=generator)
    labels = torch.arange(n) % 2
    y, x = torch.meshgrid(torch.arange(_SIDE), torch.arange(_SIDE), indexing="ij")
    centers = torch.randint(6, _SIDE - 6, (n, 2), generator=generator)
    dy, dx = (axis[None] - centers[:, which, None, None] for which, axis in enumerate((y, x)))
    square = (dy.abs() <= _ARM) & (dx.abs() <= _ARM)
    outline = square & ~((dy.abs() < _ARM - 1) & (dx.abs() < _ARM - 1))
    cross = square & ((dy.abs() <= 1) | (dx.abs() <= 1))
    shape = torch.where(labels[:, None, None] == 1, cross, outline)
    shade = 0.8 + 0.6 * torch.rand(n, 1, 1, generator=generator)
    images = images + (shape * shade)[:, None]
    # the patch lies anywhere outside the shape
    patched, masks = images.clone(), torch.zeros(n, _SIDE, _SIDE, dtype=torch.bool)
    for i in range(n):
        while True:
            top, left = torch.randint(_SIDE - _PATCH, (2,), generator=generator).tolist()
            if not square[i, top : top + _PATCH, left : left + _PATCH].any():
                break
        masks[i, top : top + _PATCH, left : left + _PATCH] = True
    color = torch.tensor([1.5, -1.0, 1.5]).view(3, 1, 1)
    patched = torch.where(masks[:, None], color + 0.2 * images, images)
    return images, patched, labels, masks


def network_of(correlation: float, plan: Plan) -> nn.Module:
    """Train a network; P(patch | class 1) = (1 + correlation) / 2 and P(patch | class 0) = (1 - correlation) / 2."""
    plain, patched, labels, _ = pictures(_TRAINING, plan.seed + 1)
    generator = torch.Generator().manual_seed(plan.seed)
    chance = 0.5 + correlation * (labels.float() - 0.5)
    has_patch = torch.rand(len(labels), generator=generator) < chance
    images = torch.where(has_patch[:, None, None, None], patched, plain)
    return train(lambda: small_network(3, 2), images, labels, steps=plan.count(_STEPS), seed=plan.seed)


def shortcut(plan: Plan) -> dict[str, Found]:
    """Score the growth of the patch's share of the map from the network without shortcut to the one that relies on it.

    The patch is added to all test images, whatever their class; class 1, with which it correlates, is explained.
    """
    plain, patched, labels, masks = pictures(plan.count(_IMAGES), plan.seed + 2)
    targets = torch.ones(len(labels)).long()
    by_correlation, effects = [], []
    notes: dict[str, Any] = {}
    for correlation in CORRELATIONS:
        model = network_of(correlation, plan)
        with torch.inference_mode():
            margins = [(logits[:, 1] - logits[:, 0]) for logits in (model(patched), model(plain))]
        effects.append(margins[0] - margins[1])
        by_correlation.append(score_all(Subject(model, "8", patched, targets, masks, SIXTH), plan))
        notes[f"correlation {correlation}"] = {
            "effect of the patch on the margin of the logits": float(effects[-1].mean()),
            "accuracy without patch": accuracy(model, plain, labels),
            "accuracy with a patch in every picture": accuracy(model, patched, labels),
        }
    # accuracy of the network without a shortcut, because all other networks are meant to be misled
    notes["accuracy"] = notes[f"correlation {CORRELATIONS[0]}"]["accuracy without patch"]
    found = Found(skipped=by_correlation[0].skipped, notes=notes | by_correlation[-1].notes)
    measured = torch.stack(effects, 1)
    relied = {}
    for row, none in by_correlation[0].scores.items():
        shares = torch.stack([one.scores[row] for one in by_correlation], 1)
        # an empty map has a share of 0 on the patch
        found.scores[row] = shares[:, -1].nan_to_num() - none.nan_to_num()
        relied[row] = spearman(shares.nan_to_num().flatten()[None], measured[: len(shares)].flatten()[None])
    for correlation, one in zip(CORRELATIONS, by_correlation, strict=True):
        shares_on_patch = {row: float(values.nan_to_num().mean()) for row, values in one.scores.items()}
        notes[f"correlation {correlation}"]["share of the map on the patch"] = shares_on_patch
    found.notes["rank correlation of the patch's share and its effect"] = {
        row: None if value.isnan() else float(value) for row, value in relied.items()
    }
    return {"shortcut": found}


TESTS = (
    Test(
        "shortcut",
        "A patch whose correlation with the label is 0, 0.5, 0.9 or 1: one network for each, and the measured effect "
        "of the patch on it",
        "share of the map on the patch for the network that relies on it, minus the share for the network that does "
        "not",
        shortcut,
        has_networks=True,
    ),
)
