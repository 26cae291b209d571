"""Planted faults 9 to 15: NaN and infinities in the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.faults.fault import fault
from benchmarks.faults.trainings import mlp
from gradcam_kit.diagnostics import find_nonfinite
from gradcam_kit.diagnostics.origins import Origins


class Function(nn.Module):
    """A module that applies a function, so that the function has a name in the model."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def inputs(n: int = 4) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(1))


def after(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Return a model of a linear layer, a ReLU, the function, and a linear layer."""
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), Function(function), nn.Linear(8, 2))


def origins(model: nn.Module, x: Tensor | None = None) -> Origins:
    with find_nonfinite(model, raise_error=False) as origin:
        model(inputs() if x is None else x).float().sum().backward()
    return origin


@fault(9, "log of 0; the twin takes the log of 1 + x", at="2", tool="find_nonfinite", says=("bad", "nonfinite", "2"))
def log_of_zero(planted: bool) -> Origins:
    return origins(after(torch.log if planted else torch.log1p))


@fault(10, "a NaN in a weight", at="2.weight", tool="find_nonfinite", says=("bad", "nonfinite", "2"))
def nan_in_weight(planted: bool) -> Origins:
    model = mlp()
    if planted:
        model[2].weight.data[3, 3] = torch.nan  # type: ignore[operator]
    return origins(model)


@fault(11, "a NaN in running_var", at="1.running_var", tool="find_nonfinite", says=("bad", "nonfinite", "1"))
def nan_in_buffer(planted: bool) -> Origins:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    if planted:
        model[1].running_var[3] = torch.nan  # type: ignore[operator]
    return origins(model)


@fault(12, "an infinite value in the input", tool="find_nonfinite", says=("bad", "nonfinite", ""))
def infinite_input(planted: bool) -> Origins:
    x = inputs()
    if planted:
        x[2, 5] = torch.inf
    return origins(mlp(), x)


@fault(
    13,
    "float16 overflows in the third layer; the twin is float32",
    at="2",
    tool="find_nonfinite",
    says=("bad", "nonfinite", "2"),
)
def overflow(planted: bool) -> Origins:
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))
    for layer in model:
        nn.init.constant_(layer.weight, 1.0)  # type: ignore[arg-type]
    x = 100 * inputs().abs()
    return origins(model.half(), x.half()) if planted else origins(model, x)


@fault(14, "the slope of a root at 0: NaN only in the backward pass; the twin adds 1e-6", at="2",
       tool="find_nonfinite", says=("bad", "nonfinite", "2"))  # fmt: skip
def backward_alone(planted: bool) -> Origins:
    return origins(after(torch.sqrt if planted else lambda x: torch.sqrt(x + 1e-6)))


class Masked(nn.Module):
    """Attention scores, a mask of -inf, a softmax and a head."""

    def __init__(self, full: bool) -> None:
        super().__init__()
        self.scores, self.softmax, self.head = nn.Linear(16, 4), nn.Softmax(-1), nn.Linear(4, 2)
        mask = torch.zeros(4, 4, dtype=torch.bool)
        mask[0, 0], mask[1] = True, full
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        return self.head(self.softmax(self.scores(x).masked_fill(self.mask, -torch.inf)))  # type: ignore[no-any-return]


@fault(15, "a row of attention is masked as a whole; the twin has -inf at one key", at="softmax", tool="find_nonfinite",
       says=("bad", "nonfinite", "softmax"))  # fmt: skip
def masked_row(planted: bool) -> Origins:
    return origins(Masked(full=planted))
