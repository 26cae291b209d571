"""Models with one planted fault each: the guilty module is named, and the healthy twin is passed over in silence."""

from __future__ import annotations

import pytest
import torch
from models import Built
from torch import Tensor, nn
from trainings import Functional, batches, found, he, mlp, train

from gradcam_kit.diagnostics import Report


def kinds(report: Report, layer: str) -> set[str]:
    return {kind for kind, own in found(report) if own == layer}


def test_healthy_twins_are_silent() -> None:
    for activation in (nn.ReLU, nn.GELU, nn.Tanh, nn.LeakyReLU):
        assert found(train(mlp(activation=activation))) == []
    # Units of deep narrow networks do die; their gradients are healthy.
    assert {kind for kind, _ in found(train(mlp(20)))} <= {"dead"}


def test_a_dead_relu_layer() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    report = train(model)
    assert found(report, "bad") == [("dead", "3")]
    dead = report.findings[0]
    assert (dead.value, dead.n, report.layers[3].dead) == (1.0, 640, 32)
    assert "0.5%" in dead.message  # 3 / 640


def test_some_units_are_dead() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].bias[:10] = -100.0
    report = train(model)
    assert found(report) == [("dead", "3")]
    assert (report.findings[0].level, report.findings[0].value) == ("warn", 10 / 32)


def test_few_samples_are_never_more_than_a_note() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    report = train(model, data=batches(2))
    assert ("dead", "3") in found(report, "note")
    assert not any(kind == "dead" for kind, _ in found(report))


@pytest.mark.parametrize("norm", [False, True])
def test_a_dead_functional_relu(norm: bool) -> None:
    model = Functional(norm)
    assert found(train(model)) == []
    with torch.no_grad():
        (model.norm if norm else model.first).bias.fill_(-100.0)
    report = train(model)
    assert ("dead", "norm" if norm else "first") in found(report, "bad")
    assert not any(kind == "dead" and layer == "last" for kind, layer in found(report))


def test_death_in_mid_training_is_seen_in_the_last_window() -> None:
    model = mlp()

    def kill(step: int) -> torch.no_grad:
        if step == 60:
            with torch.no_grad():
                model[2].bias.fill_(-1000.0)
        return torch.enable_grad()

    report = train(model, 80, window=10, around=kill)
    assert ("dead", "3") in found(report, "bad")
    assert report.layers[3].max > 0


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid])
def test_saturated(activation: type[nn.Module]) -> None:
    model = mlp(2, activation=activation)
    assert ("saturated", "1") not in found(train(model), "bad")
    with torch.no_grad():
        model[0].weight.mul_(50)
    assert ("saturated", "1") in found(train(model), "bad")


def test_large_values_without_saturation() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    assert not any(kind == "saturated" for kind, _ in found(train(he(model))))


def test_vanishing_and_exploding() -> None:
    report = train(mlp(20, activation=nn.Sigmoid))
    assert ("vanishing", "0") in found(report, "bad")
    report = train(he(mlp(20), gain=3.0), lr=1e-30)
    assert ("exploding", "0") in found(report, "bad")


def test_residual_models_are_judged_on_their_trunk() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 8)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU()) for _ in range(12)
            )
            for block in self.blocks:  # the branches have tiny gradients, the trunk has not
                nn.init.normal_(block[1].weight, std=1e-6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    report = train(Residual())
    assert not any(kind in ("vanishing", "exploding") for kind, _ in found(report, "bad"))


def test_a_detached_branch() -> None:
    def two(detached: bool) -> nn.Module:
        def run(m: nn.Module, x: Tensor) -> Tensor:
            branch = m.branch(x)
            return m.head(m.trunk(x) + (branch.detach() if detached else branch))

        parts = {
            "trunk": nn.Sequential(nn.Linear(16, 32), nn.ReLU()),
            "branch": nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32)),
            "head": nn.Linear(32, 8),
        }
        return he(Built(run, **parts))

    assert found(train(two(False))) == []
    report = train(two(True))
    assert found(report) == [("no-gradient", "branch")]
    assert "detach()" in report.findings[0].advice


def test_an_unused_module_is_told_from_a_detached_one() -> None:
    model = he(Built(lambda m, x: m.used(x), used=nn.Linear(16, 8), unused=nn.Linear(3, 3)))
    report = train(model)
    assert found(report) == [("no-gradient", "unused")]
    assert report.never_ran == ("unused",)
    assert "never ran" in report.findings[0].advice


def test_a_parameter_outside_of_the_optimizer() -> None:
    model = mlp()
    optimizer = torch.optim.SGD([*model[:2].parameters(), *model[4:].parameters()], lr=0.01)
    assert found(train(model, optimizer=optimizer)) == [("not-in-optimizer", "2")]


def test_frozen_by_mistake() -> None:
    model = mlp()
    groups = [
        {"params": model[2].parameters(), "lr": 0.0},
        {"params": [*model[0].parameters(), *model[4:].parameters()]},
    ]
    assert found(train(model, optimizer=torch.optim.SGD(groups, lr=0.01))) == [("frozen", "2")]
    model = mlp()
    model[2].requires_grad_(False)
    assert found(train(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))) == [("frozen", "2")]
    assert found(train(model), "bad", "warn") == []
    assert found(train(model), "note") == [("frozen", "2")]


@pytest.mark.parametrize(("lr", "words"), [(1e-9, "little"), (30.0, "much")])
def test_learning_rates(lr: float, words: str) -> None:
    report = train(mlp(), lr=lr)
    assert any(one.kind == "update" and words in one.message for one in report.findings)


def test_collapsed_features() -> None:
    model = mlp()
    assert found(train(model, data=batches(10), lr=1e-3)) == []
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:, :1] @ torch.ones(1, 32) + 1e-9 * model[2].weight)
        model[2].weight.copy_(torch.outer(torch.randn(32), torch.randn(32)))
    assert ("collapsed", "2") in found(train(model, data=batches(10), lr=1e-9), "bad")


def test_duplicated_channels() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[16:] = model[2].weight[:16]
    assert ("redundant", "2") in found(train(model, data=batches(10), lr=1e-6), "warn")


def test_constant_output() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].weight[0, 0] = 1e-30
        model[2].bias.fill_(1.0)
    report = train(model, lr=1e-9)
    assert ("constant", "2") in found(report, "bad")
    assert not any(kind in ("constant", "dead") and layer != "2" for kind, layer in found(report))


def test_missing_zero_grad() -> None:
    report = train(mlp(), 41, lr=1e-6, zero_grad=False, data=iter([next(batches(1))] * 41))
    assert any(kind == "accumulated" for kind, _ in found(report, "warn"))
    report = train(mlp(), 41, lr=1e-6, data=iter([next(batches(1))] * 41))
    assert not any(kind == "accumulated" for kind, _ in found(report))


def test_the_first_layer_with_nan() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 3] = torch.nan
    report = train(model, 1)
    assert found(report, "bad")[0] == ("nonfinite", "2")
    assert report.layers[2].nan == 32
    assert report.layers[1].nan == 0


def test_masked_scores_in_front_of_a_softmax_are_healthy() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(torch.eye(x.shape[-1], dtype=torch.bool)[0], -torch.inf)

    model = Built(
        lambda m, x: m.head(m.softmax(m.mask(m.scores(x)))),
        scores=nn.Linear(16, 32), mask=Masked(), softmax=nn.Softmax(-1), head=nn.Linear(32, 8),
    )  # fmt: skip
    assert not any(kind == "nonfinite" for kind, _ in found(train(he(model))))


def test_steps_that_rounding_swallows_are_too_small_and_nothing_is_called_frozen() -> None:
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        model = mlp()
        report = train(model, optimizer=optimizer(model.parameters(), lr=1e-12))
        assert found(report) == [("update", "")]
        assert "precision of the weights" in report.findings[0].advice


def test_a_model_that_stands_still_is_one_finding() -> None:
    model = mlp()
    report = train(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    assert found(report) == [("frozen", "")]
    assert report.findings[0].message == "the parameters have gradients but did not change (measured steps: 2)"


def test_a_cause_is_told_and_not_what_follows() -> None:
    report = train(mlp(), lr=10.0)
    assert found(report)[0] == ("update", "")
    assert found(report, "bad") == []
    model = mlp()
    torch.nn.init.constant_(model[2].bias, -1000.0)
    assert found(train(model)) == [("dead", "3")]
