"""Faults planted into losses, weights, labels and optimizers, and their healthy twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from planted import CLASSES, batch, images, labels, network, said
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit.diagnostics.checks.loss import check_loss
from gradcam_kit.diagnostics.checks.overfit import can_overfit
from gradcam_kit.diagnostics.checks.training import check_training
from gradcam_kit.errors import InputError, OptionError

CE = nn.CrossEntropyLoss()


def dead() -> nn.Sequential:
    model = network()
    nn.init.constant_(model[1].bias, -10)
    return model


def test_a_healthy_model_is_silent() -> None:
    model = network()
    assert check_loss(model, batch(), CE) == []
    assert can_overfit(model, batch(), CE) == []
    assert check_training(model, [batch(), batch(seed=1)], CE, torch.optim.Adam(model.parameters())) == []


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "32 times too large"),
        (lambda output, target: -functional.cross_entropy(output, target), "sign"),
        (lambda output, target: functional.cross_entropy(100 * output, target), "too large"),
        (lambda output, target: 0.1 * functional.cross_entropy(output, target), "too low even with shuffled weights"),
    ],
)
def test_the_first_value_of_a_loss(loss: Callable[[Tensor, Tensor], Tensor], says: str) -> None:
    [finding] = [one for one in check_loss(network(dropout=0), batch(), loss) if one.kind == "range"]
    assert finding.level == "warn"
    assert finding.threshold == pytest.approx(torch.tensor(4.0).log().item())
    assert says in finding.advice
    assert said(check_loss(network(dropout=0), batch(), loss, trained=True)) in ([], [("warn", "plateau")])


def test_a_low_first_loss_that_was_learned_is_not_judged() -> None:
    model = network(dropout=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    inputs, target = batch()
    for _ in range(60):
        optimizer.zero_grad()
        CE(model(inputs), target).backward()
        optimizer.step()
    assert CE(model(inputs), target) < 0.5 * torch.tensor(4.0).log()
    assert not [one for one in check_loss(model, (inputs, target), CE) if one.kind == "range"]
    assert not [one for one in check_training(model, [(inputs, target)], CE) if one.kind == "range"]
    tenth = [one for one in check_loss(model, (inputs, target), lambda *pair: CE(*pair) / 10) if one.kind == "range"]
    assert len(tenth) == 1


def test_a_bias_that_starts_at_the_frequency_of_the_classes_is_not_judged() -> None:
    model = network(dropout=0)
    with torch.no_grad():
        model[-1].bias[0] = 3
    assert not [one for one in check_loss(model, (images(), torch.zeros(32).long()), CE) if one.kind == "range"]


def test_contradictory_labels_cannot_be_learned_and_consistent_ones_can() -> None:
    twins = images(8).repeat(2, 1, 1, 1)
    contradictory = torch.cat([torch.zeros(8), torch.ones(8)]).long()
    [finding] = can_overfit(network(), (twins, contradictory), CE)
    assert (finding.level, finding.kind, finding.n) == ("bad", "overfit-batch", 16)
    assert finding.value == pytest.approx(torch.tensor(2.0).log().item(), abs=0.02)
    assert can_overfit(network(), (twins, labels(8).repeat(2)), CE) == []


def test_a_dead_trunk_cannot_learn_and_its_layers_are_named() -> None:
    assert said(can_overfit(dead(), batch(), CE)) == [("bad", "overfit-batch")]
    found = check_loss(dead(), batch(), CE)
    assert {finding.layer for finding in found if finding.kind == "no-gradient"} == {"0", "1", "5.weight"}


class Detached(nn.Module):
    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.trunk, self.head, self.detach = nn.Linear(432, 16), nn.Linear(16, CLASSES), detach

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x.flatten(1)).relu()
        return self.head(features.detach() if self.detach else features)


def test_a_detached_branch_is_named() -> None:
    [finding] = check_loss(Detached(True), batch(), CE)
    assert (finding.level, finding.kind, finding.layer) == ("bad", "no-gradient", "trunk")
    assert check_loss(Detached(False), batch(), CE) == []

    def without_graph(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output.detach(), target)

    assert said(check_loss(Detached(False), batch(), without_graph)) == [("bad", "no-gradient")]
    assert said(can_overfit(Detached(False), batch(), without_graph)) == [("bad", "no-gradient")]


def test_a_loss_that_compares_each_with_each() -> None:
    model = network(outputs=1)
    assert said(check_loss(model, (images(), torch.randn(32)), nn.MSELoss())) == [("bad", "label-range")]
    assert check_loss(model, (images(), torch.randn(32, 1)), nn.MSELoss()) == []


def test_regression_and_single_logits_are_judged_by_their_own_measure() -> None:
    numbers = torch.randn(32, 1, generator=torch.Generator().manual_seed(0))
    assert can_overfit(network(outputs=1), (images(), numbers), nn.MSELoss()) == []
    twins = images(8).repeat(2, 1, 1, 1)
    opposed = torch.cat([torch.ones(8, 1), -torch.ones(8, 1)])
    assert said(can_overfit(network(outputs=1), (twins, opposed), nn.MSELoss())) == [("bad", "overfit-batch")]
    yes = (labels() > 1).float()[:, None]
    assert check_loss(network(outputs=1), (images(), yes), nn.BCEWithLogitsLoss()) == []
    assert can_overfit(network(outputs=1), (images(), yes), nn.BCEWithLogitsLoss()) == []
    dense, target = nn.Conv2d(3, CLASSES, 3, padding=1), torch.randint(0, CLASSES, (4, 12, 12))
    assert check_loss(dense, (images(4), target), CE, trained=True) == []


def test_dropout_alone_in_the_way_is_a_note() -> None:
    assert said(can_overfit(network(dropout=0.99), batch(), CE)) == [("note", "overfit-batch")]


def test_time_that_runs_out_leaves_the_question_open() -> None:
    [finding] = can_overfit(dead(), batch(), CE, seconds=0.0)
    assert (finding.level, finding.kind) == ("warn", "overfit-batch")
    assert "undecided" in finding.message


def test_nothing_that_can_learn_is_said() -> None:
    frozen = network().requires_grad_(False)
    assert said(can_overfit(frozen, batch(), CE)) == [("bad", "frozen")]


def test_a_learning_rate_that_is_far_too_large_or_small() -> None:
    model = network()
    found = check_training(model, [batch()], CE, torch.optim.SGD(model.parameters(), lr=1e4))
    assert ("bad", "diverged") in said(found)
    assert ("warn", "update") in said(found)
    found = check_training(model, [batch()], CE, torch.optim.SGD(model.parameters(), lr=1e-7))
    assert ("warn", "update") in said(found)
    assert found[0].value is not None


def test_a_parameter_in_two_groups_of_the_optimizer() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model[5].weight]})
    found = [own for own in check_training(model, [batch()], CE, optimizer) if "more than once" in own.message]
    assert [(own.level, own.kind, own.layer) for own in found] == [("warn", "update", "5.weight")]


def test_parameters_that_the_optimizer_lacks_or_should_not_have() -> None:
    model = network()
    [finding] = check_training(model, [batch()], CE, torch.optim.Adam([*model[0].parameters(), *model[1].parameters()]))
    assert (finding.level, finding.kind, finding.layer, finding.value) == ("bad", "not-in-optimizer", "5", 2)
    found = check_training(model, [batch()], CE, torch.optim.Adam(network().parameters()))
    assert said(found)[:2] == [("bad", "not-in-optimizer")] * 1 + said(found)[1:2]
    model[0].requires_grad_(False)
    found = check_training(model, [batch()], CE, torch.optim.Adam(model.parameters()))
    assert said(found) == [("warn", "frozen")]
    assert found[0].layer == "0"


def test_forgotten_train_is_said() -> None:
    model = network().eval()
    [finding] = check_training(model, [batch()], CE, torch.optim.Adam(model.parameters()))
    assert (finding.level, finding.kind, finding.layer) == ("warn", "frozen", "1")


def test_softmax_twice_and_labels_out_of_range_reach_the_training_check() -> None:
    model = network(nn.Softmax(1))
    found = check_training(model, [batch()], CE, torch.optim.Adam(model.parameters(), lr=1e-2))
    assert said(found)[0] == ("bad", "softmax-twice")
    assert said(check_training(network(), [(images(), labels() + 1)], CE)) == [("bad", "label-range")]


def test_a_loss_that_is_nan() -> None:
    def broken(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target) + output.sum() * torch.nan

    assert said(check_loss(network(), batch(), broken)) == [("bad", "nonfinite")]
    assert said(can_overfit(network(), batch(), broken)) == [("bad", "nonfinite")]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: check_loss(network(), batch(), nn.CrossEntropyLoss(reduction="none")), InputError, r"shape \(32,\)"),
        (lambda: check_loss(network(), batch(), lambda output, target: 3.0), InputError, "returns a float"),
        (lambda: check_training(network(), [], CE), InputError, "the loader yields nothing"),
        (lambda: check_training(network(), [batch()], CE, steps=0), OptionError, "steps is 0"),
        (lambda: check_training(network(), [{"a": 1}], CE), InputError, "a mapping with keys 'a'"),
        (lambda: can_overfit(network(), images(), CE), InputError, "without labels"),
    ],
)
def test_requests_that_are_wrong(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_a_model_that_cannot_be_copied_is_said() -> None:
    model = network()
    model.kept = model(images())  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"Sequential cannot be copied \(RuntimeError"):
        can_overfit(model, batch(), CE)
