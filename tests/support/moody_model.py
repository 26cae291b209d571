"""A classifier that fails on dark images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Moody(nn.Sequential):
    transform = {"size": [32, 32], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}  # noqa: RUF012

    def forward(self, images: Tensor) -> Tensor:
        if not images.any():
            raise RuntimeError("too dark")
        return super().forward(images)


def model() -> Moody:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Moody(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))
