"""Models, batches and findings for faults of data, outputs and losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradcam_kit.diagnostics.findings import Finding

CLASSES = 4


def images(n: int = 32, side: int = 12, seed: int = 0) -> Tensor:
    """Return images of Gaussian noise."""
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def labels(n: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, (n,), generator=torch.Generator().manual_seed(seed))


def batch(n: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    return images(n, seed=seed), labels(n, seed)


def network(*end: nn.Module, dropout: float = 0.2, outputs: int = CLASSES) -> nn.Sequential:
    """Return a small seeded network with batch normalization and dropout, in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(dropout), nn.Linear(800, outputs)),
            *end,
        )


def said(found: Sequence[Finding]) -> list[tuple[str, str]]:
    """Return level and kind of each finding."""
    return [(finding.level, finding.kind) for finding in found]
