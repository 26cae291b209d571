"""Train small networks from a seed, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Network = TypeVar("Network", bound=nn.Module)
Augment = Callable[[Tensor, torch.Generator], Tensor]


def train(
    build: Callable[[], Network],
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    rate: float = 3e-3,
    batch: int = 48,
    seed: int = 0,
    augment: Augment | None = None,
) -> Network:
    """Train a network with AdamW and a one-cycle schedule; the global random state is restored afterwards."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().train()
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(images), (batch,), generator=generator)
            shown = images[rows] if augment is None else augment(images[rows], generator)
            loss = cross_entropy(model(shown), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of correct predictions."""
    return float((model(images).argmax(1) == labels).float().mean())


def small_network(channels: int, classes: int) -> nn.Module:
    """Return three convolutions with mean pooling and a linear layer; module "8" gives the last maps."""
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, classes),
    )
