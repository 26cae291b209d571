"""Gradients that are watched, clipped or smoothed, by hand and against torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from trainings import batches, mlp

from gradcam_kit.diagnostics import clip_gradients, measure_overhead, monitor_gradients, smooth_gradients
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, OptionError


def loss_of(model: nn.Module, factor: float = 1.0) -> torch.Tensor:
    inputs, labels = next(batches(1))
    return factor * functional.cross_entropy(model(inputs), labels)


def test_monitored_gradients_are_the_gradients() -> None:
    model = mlp()
    with monitor_gradients(model, "2*") as gradients:
        loss_of(model).backward()
    assert set(gradients) == {"2", "2.weight", "2.bias"}
    assert gradients["2.weight"].norm == pytest.approx(float(model[2].weight.grad.norm()))
    assert gradients["2.weight"].largest == float(model[2].weight.grad.abs().max())
    assert gradients["2"].shape == (32, 32)
    assert gradients["2"].rms == pytest.approx(gradients["2"].norm / 32)
    together = math.hypot(gradients["2.weight"].norm, gradients["2.bias"].norm)
    assert gradients.total_norm == pytest.approx(together)
    assert model[2].weight._post_accumulate_grad_hooks in (None, {})


def test_a_forward_pass_before_the_block_leaves_the_parameters() -> None:
    model = mlp()
    loss = loss_of(model)
    with monitor_gradients(model, "2") as gradients:
        loss.backward()
    assert set(gradients) == {"2.weight", "2.bias"}
    with pytest.raises(CaptureError, match="forward pass too"):
        gradients["2"]


def test_clipping_equals_torch() -> None:
    clipped, expected = mlp(), mlp()
    with clip_gradients(clipped, "2", max_norm=0.5):
        loss_of(clipped, 100).backward()
        inside = [own.grad.clone() for own in clipped.parameters()]
    loss_of(expected, 100).backward()
    nn.utils.clip_grad_norm_(expected[2].parameters(), 0.5)
    assert all(torch.equal(a, b.grad) for a, b in zip(inside, expected.parameters(), strict=True))
    small, expected = mlp(), mlp()
    with clip_gradients(small, max_norm=1e6):
        loss_of(small).backward()
    loss_of(expected).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(small.parameters(), expected.parameters(), strict=True))


def test_parameters_of_modules_with_children_are_clipped_and_watched() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.token)

    model = Tokens()
    with monitor_gradients(model) as gradients, clip_gradients(model, max_norm=1e-3):
        (100 * model(torch.ones(2, 4))).sum().backward()
    total = torch.stack([own.grad.norm() for own in model.parameters()]).norm()
    assert float(total) == pytest.approx(1e-3, rel=1e-4)
    assert gradients["token"].norm > 0


def test_clipping_by_value_and_of_tensors() -> None:
    model = mlp()
    with clip_gradients(model, value=0.01):
        loss_of(model, 100).backward()
    assert max(float(own.grad.abs().max()) for own in model.parameters()) == pytest.approx(0.01)
    x = torch.ones(4, requires_grad=True)
    y = x * 2
    with clip_gradients(y, max_norm=1.0):
        y.sum().backward()
    assert torch.allclose(x.grad, torch.ones(4))  # 2 * 0.5


def test_smoothing_by_hand() -> None:
    weight = torch.zeros(2, requires_grad=True)
    found = []
    with smooth_gradients(weight, decay=0.9):
        for gradient in (1.0, 2.0, -1.0):
            weight.grad = None
            (gradient * weight).sum().backward()
            found.append(float(weight.grad[0]))
    averages, s = [], 0.0
    for t, gradient in enumerate((1.0, 2.0, -1.0), 1):
        s = 0.9 * s + 0.1 * gradient
        averages.append(s / (1 - 0.9**t))
    assert found == pytest.approx(averages)
    assert not weight._backward_hooks


@pytest.mark.parametrize(
    ("options", "error"),
    [({"max_norm": -1.0}, OptionError), ({"value": -0.1}, OptionError), ({}, OptionError),
     ({"max_norm": 1.0, "value": 1.0}, OptionError), ({"layers": "x*", "max_norm": 1.0}, LayerNotFoundError),
     ({"layers": "1", "max_norm": 1.0}, InputError)],
)  # fmt: skip
def test_bad_requests(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error), clip_gradients(mlp(), **options):
        pass
    with pytest.raises(OptionError), smooth_gradients(mlp(), decay=1.0):
        pass
    with pytest.raises(InputError), smooth_gradients("fc"):
        pass


def test_overhead_leaves_the_model_alone() -> None:
    model = mlp()
    measured = measure_overhead(monitor_gradients, model, next(batches(1))[0], rounds=2)
    assert measured.rounds == 2
    assert measured.low <= measured.ratio <= measured.high
    assert all(own.grad is None for own in model.parameters())
    with pytest.raises(OptionError):
        measure_overhead(monitor_gradients, model, torch.ones(1, 16), rounds=0)
