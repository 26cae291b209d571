"""Checks leave the model, its optimizer, its gradients, its modes and all random states as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from planted import batch, images, labels, network
from torch import Tensor, nn
from traces import same, unchanged

from gradcam_kit.diagnostics.checks.loss import check_loss
from gradcam_kit.diagnostics.checks.output import check_output
from gradcam_kit.diagnostics.checks.overfit import can_overfit
from gradcam_kit.diagnostics.checks.training import check_training

CE = nn.CrossEntropyLoss()


def trained(kind: type[torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after two steps, with gradients, statistics and a mixture of modes."""
    model = network()
    optimizer = kind(model.parameters(), lr=1e-3)  # type: ignore[call-arg]
    for _ in range(2):
        optimizer.zero_grad()
        CE(model(images()), labels()).backward()
        optimizer.step()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    return model, optimizer


CHECKS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "output": lambda model, optimizer, loss: check_output(model, batch(), loss=loss),
    "loss": lambda model, optimizer, loss: check_loss(model, batch(), loss, optimizer=optimizer),
    "overfit": lambda model, optimizer, loss: can_overfit(model, batch(), loss),
    "training": lambda model, optimizer, loss: check_training(model, [batch()], loss, optimizer, steps=3),
}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("check", list(CHECKS))
def test_nothing_changes(check: str, kind: type[torch.optim.Optimizer]) -> None:
    model, optimizer = trained(kind)
    before = {key: value.clone() for state in optimizer.state.values() for key, value in _tensors(state)}
    with unchanged(model):
        CHECKS[check](model, optimizer, CE)
    after = {key: value for state in optimizer.state.values() for key, value in _tensors(state)}
    assert all(same(before[key], after[key]) for key in before.keys() | after.keys())


@pytest.mark.parametrize("mode", ["inference", "no_grad"])
def test_callers_without_gradients_get_the_same(mode: str) -> None:
    model, _ = trained(torch.optim.SGD)
    expected = check_loss(model, batch(), CE), can_overfit(model, batch(), CE), check_output(model, batch())
    pair = batch()
    with torch.inference_mode() if mode == "inference" else torch.no_grad(), unchanged(model):
        assert (check_loss(model, pair, CE), can_overfit(model, pair, CE), check_output(model, pair)) == expected


@pytest.mark.parametrize("check", [name for name in CHECKS if name != "output"])
def test_nothing_changes_when_the_loss_fails(check: str) -> None:
    model, optimizer = trained(torch.optim.SGD)
    calls = []

    def failing(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise ZeroDivisionError
        return nn.functional.cross_entropy(output, target)

    with unchanged(model), pytest.raises(ZeroDivisionError):
        CHECKS[check](model, optimizer, failing)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = network(), 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        torch.rand(1)
        if x.requires_grad:
            raise ZeroDivisionError
        return self.network(x)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes_when_the_model_fails(training: bool) -> None:
    model = Failing().train(training)
    with unchanged(model), pytest.raises(ZeroDivisionError):
        check_output(model, batch())


def _tensors(state: dict[str, Any]) -> list[tuple[tuple[int, str], Tensor]]:
    return [((id(state), key), value) for key, value in state.items() if isinstance(value, Tensor)]
