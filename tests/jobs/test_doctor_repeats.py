"""Images that a training shows again and again count once where verdicts rest on samples."""

from __future__ import annotations

import torch
from planted import CLASSES
from torch import nn
from torch.nn import functional

from gradcam_kit.jobs.work.observed import _are_positions, observed_training


def dead() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    nn.init.constant_(model[1].bias, -100.0)
    return model


def levels(n: int) -> set[tuple[str, str, int | None]]:
    images, labels = torch.randn(n, 3, 4, 4), torch.arange(n) % CLASSES
    parts = list(zip(images.split(8), labels.split(8), strict=True))
    found, _, _ = observed_training(dead(), parts, functional.cross_entropy, 20)
    return {(finding.level, finding.layer, finding.n) for finding in found if finding.kind == "dead"}


def test_few_images_that_are_repeated_are_never_more_than_a_note() -> None:
    assert levels(8) == {("note", "2", 8)}
    assert levels(128) == {("bad", "2", 128)}


def test_heads_and_tokens_are_no_maps() -> None:
    assert _are_positions((4, 192, 14, 14), (4, 3, 224, 224))
    assert _are_positions((4, 8, 7, 10), (4, 3, 224, 320))
    assert not _are_positions((4, 3, 197, 64), (4, 3, 224, 224))
    assert not _are_positions((4, 197, 192), (4, 3, 224, 224))
    assert not _are_positions((4, 192, 1, 1), (4, 3, 224, 224))
