"""Small seeded models for the tests, each with one property that matters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a seeded random value, leave the global random state alone, and return the module in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim < 2 else 0.3))
    return module.eval()


def images(n: int = 3, c: int = 3, size: tuple[int, ...] = (16, 16), seed: int = 1) -> Tensor:
    """Seeded random images."""
    return torch.randn(n, c, *size, generator=torch.Generator().manual_seed(seed))


class TinyCNN(nn.Module):
    """Two stages, an in-place ReLU behind each convolution, and a head behind mean pooling or flattening."""

    def __init__(self, classes: int = 5, channels: int = 6, *, inplace: bool = True, flatten: int = 0) -> None:
        super().__init__()
        self.stage1 = nn.Conv2d(3, channels, 3, padding=1)
        self.relu1 = nn.ReLU(inplace=inplace)
        self.stage2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.relu2 = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(channels * max(flatten, 1), classes)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.stage2(self.relu1(self.stage1(x))))
        return self.fc(x.flatten(1) if self.flatten else x.mean((2, 3)))


def tiny(**options: object) -> nn.Module:
    """A seeded TinyCNN."""
    return seeded(TinyCNN(**options))  # type: ignore[arg-type]
