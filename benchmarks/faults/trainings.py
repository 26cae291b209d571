"""Small models, and trainings of them inside a ModelDiagnostics block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit.diagnostics import ModelDiagnostics, Report


def batches(
    steps: int, n: int = 32, inputs: int = 16, classes: int = 8, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of noisy clusters, one cluster per class."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, inputs, generator=generator)
    for _ in range(steps):
        labels = torch.randint(0, classes, (n,), generator=generator)
        yield centers[labels] + torch.randn(n, inputs, generator=generator), labels


def he(module: nn.Module, gain: float = 1.0, seed: int = 0) -> nn.Module:
    """Initialize linear and convolutional layers with He's method, scaled by a gain, and return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in module.modules():
            if isinstance(own, nn.Linear | nn.Conv2d):
                fan = own.weight[0].numel()
                own.weight.copy_(torch.randn(own.weight.shape, generator=generator) * gain * (2 / fan) ** 0.5)
                if own.bias is not None:
                    own.bias.zero_()
    return module


def mlp(depth: int = 3, width: int = 32, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers with activations between them, for 16 inputs and 8 classes."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(16 if i == 0 else width, width), activation()]
    return he(nn.Sequential(*layers, nn.Linear(width, 8)))  # type: ignore[return-value]


class Functional(nn.Module):
    """A linear layer, an optional normalization, a functional ReLU, and a linear layer."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32, bias=not norm)
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()
        self.last = nn.Linear(32, 8)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.norm(self.first(x))))  # type: ignore[no-any-return]


def train(
    model: nn.Module,
    steps: int = 20,
    *,
    lr: float = 0.01,
    optimizer: torch.optim.Optimizer | None = None,
    data: Iterator[tuple[Tensor, Tensor]] | None = None,
    zero_grad: bool = True,
    around: Callable[[int], Any] = lambda step: nullcontext(),
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    **options: Any,
) -> Report:
    """Train a model inside a ModelDiagnostics block, and return the report."""
    optimizer = optimizer or torch.optim.SGD([own for own in model.parameters() if own.requires_grad], lr=lr)
    with ModelDiagnostics(model, optimizer=optimizer, **options) as diagnostics:
        for step, (inputs, labels) in enumerate(data or batches(steps)):
            with around(step):
                if zero_grad:
                    optimizer.zero_grad()
                loss(model(inputs), labels).backward()
                optimizer.step()
    return diagnostics.report()


def found(report: Report, *levels: str) -> list[tuple[str, str]]:
    """Return kind and layer of all findings of these levels; by default "bad" and "warn"."""
    return [(one.kind, one.layer) for one in report.findings if one.level in (levels or ("bad", "warn"))]
