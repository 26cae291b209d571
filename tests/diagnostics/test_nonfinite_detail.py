"""find_nonfinite(detail=True): operator and line; and the gradients on the way in the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Built
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit.diagnostics import find_nonfinite
from gradcam_kit.errors import NonFiniteError

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


class Ratio(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scale = x.relu().sum(1, keepdim=True) * 0
        x = x.tanh()
        return x.div_(scale)  # here


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def forward_of(model: nn.Module, x: Tensor = X, **options: Any) -> Any:
    with find_nonfinite(model, raise_error=False, **options) as origin:
        model(x)
    return origin.forward


def test_operator_and_line() -> None:
    model = nn.Sequential(nn.Linear(16, 8), Ratio(), nn.Linear(8, 2))
    found = forward_of(model, detail=True)
    assert (found.layer, found.operator) == ("1", "div_")
    assert found.line.endswith("return x.div_(scale)  # here")
    assert f"{__file__}:" in found.line
    assert (forward_of(model).operator, forward_of(model).line) == ("", "")
    with pytest.raises(NonFiniteError, match=r"by div_ in .*x\.div_\(scale\)"), find_nonfinite(model, detail=True):
        model(X)


def test_a_module_of_torch_is_named_by_its_own_line() -> None:
    model = nn.Sequential(nn.Linear(16, 4)).half()
    with torch.no_grad():
        model[0].weight.fill_(3e4)
    found = forward_of(model, X.abs().half() + 1, detail=True)
    assert (found.layer, found.operator) == ("0", "addmm")
    assert "linear.py:" in found.line


def test_infinities_that_were_asked_for_are_not_the_operator() -> None:
    def rows(x: Tensor) -> Tensor:
        masked = x.masked_fill(torch.ones(4, 16, dtype=torch.bool), -torch.inf)
        return functional.softmax(masked, -1)

    assert forward_of(nn.Sequential(Function(rows)), detail=True).operator == "_softmax"
    found = forward_of(nn.Sequential(Function(lambda x: x.relu().log() * 0)), detail=True)
    assert (found.kind, found.operator) == ("nan", "log")


def test_a_broken_parameter_needs_no_operator() -> None:
    model = nn.Sequential(nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    found = forward_of(model, detail=True)
    assert (found.cause, found.operator) == ("parameter weight", "")


class Random(nn.Module):
    """Which operator fails depends on a random number, and whether one does on a buffer that the call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.register_buffer("calls", torch.zeros(()))
        self.coins: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.coins.append(bool(torch.rand(()) < 0.5))
        x = self.norm(x)
        return x.exp() / (self.calls - 1) if self.coins[-1] else (x.exp() * (self.calls - 1)).log()


@pytest.mark.parametrize("detail", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_second_run_sees_the_same_and_leaves_nothing(detail: bool, seed: int) -> None:
    def results(watched: bool) -> tuple[list[Tensor], Any, list[bool]]:
        torch.manual_seed(seed)
        model, found = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), Random(), nn.Dropout(0.5)), None
        if watched:
            with find_nonfinite(model, raise_error=False, detail=detail) as origin:
                model(X).sum().backward()
            found = origin.forward
        else:
            model(X).sum().backward()
        grads = [own.grad.nan_to_num() for own in model.parameters() if own.grad is not None]
        return [*model.state_dict().values(), *grads, torch.get_rng_state()], found, model[2].coins

    (plain, _, _), (watched, found, coins) = results(False), results(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert coins == [coins[0]] * (2 if detail else 1)
    assert (found.layer, found.operator) == ("2", "" if not detail else "div" if coins[0] else "log")


def test_a_module_that_fails_the_second_time_leaves_the_place_unknown() -> None:
    class Once(nn.Module):
        used = False

        def forward(self, x: Tensor) -> Tensor:
            if self.used:
                raise RuntimeError("only once")
            self.used = True
            return x.relu().log()

    found = forward_of(nn.Sequential(Once()), detail=True)
    assert (found.layer, found.cause, found.operator) == ("0", "computed here", "")


def test_gradients_on_the_way() -> None:
    parts = {"first": nn.Linear(16, 8), "root": Function(lambda x: x.relu().sqrt()), "large": nn.Linear(8, 2)}
    model = Built(lambda m, x: m.large(m.root(m.first(x))), **parts)
    with torch.no_grad():
        model.large.weight.fill_(2.0)
    with find_nonfinite(model, raise_error=False) as origin:
        (100 * model(X)).sum().backward()
    found = origin.backward
    assert (found.layer, found.operator) == ("root", "SqrtBackward0")
    assert [(seen.layer, seen.input) for seen in found.trail] == [("large", 100.0), ("root", 400.0)]
    assert found.trail[0].output == 400.0
    assert "large |g|max 100 -> 400; root |g|max 400 -> inf" in str(found)
