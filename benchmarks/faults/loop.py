"""Planted faults 16 to 20, 32, 33, 35 and 36: gradients, optimizers, losses, modes, and the loop around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faults.fault import fault
from benchmarks.faults.networks import batch, images, labels, network
from benchmarks.faults.trainings import he, mlp, train
from gradcam_kit.diagnostics import Finding, Report, can_overfit, check_output, check_training

CROSS_ENTROPY = nn.CrossEntropyLoss()


class Branched(nn.Module):
    """A trunk, a branch that is added to it, and a head."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.branch = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32))
        self.head, self.detached = nn.Linear(32, 8), detached
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        side = self.branch(x)
        return self.head(self.trunk(x) + (side.detach() if self.detached else side))  # type: ignore[no-any-return]


@fault(16, "a branch is detached", at="branch", says=("bad", "no-gradient", "branch"))
def detached(planted: bool) -> Report:
    return train(Branched(planted))


@fault(17, "the optimizer lacks a layer", at="2", says=("bad", "not-in-optimizer", "2"))
def outside_of_optimizer(planted: bool) -> Report:
    model = mlp()
    held = [*model[:2].parameters(), *(() if planted else model[2].parameters()), *model[3:].parameters()]
    return train(model, optimizer=torch.optim.SGD(held, lr=0.01))


@fault(18, "the learning rate of a layer is 0", at="2", says=("bad", "frozen", "2"))
def frozen_by_rate(planted: bool) -> Report:
    model = mlp()
    others = [*model[:2].parameters(), *model[3:].parameters()]
    groups: list[dict[str, Any]] = [
        {"params": list(model[2].parameters()), "lr": 0.0 if planted else 0.01},
        {"params": others},
    ]
    return train(model, optimizer=torch.optim.SGD(groups, lr=0.01))


@fault(18, "requires_grad is off in a layer that the optimizer holds", at="2", says=("warn", "frozen", "2"))
def frozen_by_flag(planted: bool) -> Report:
    model = mlp()
    if planted:
        model[2].requires_grad_(False)
    return train(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))


@fault(19, "the learning rate is 1000 times too large", says=("warn", "update", ""))
def rate_too_large(planted: bool) -> Report:
    return train(mlp(), lr=10.0 if planted else 0.01)


@fault(19, "the learning rate is 1000 times too small", says=("warn", "update", ""))
def rate_too_small(planted: bool) -> Report:
    return train(mlp(), lr=1e-6 if planted else 1e-3)


@fault(20, "softmax twice", at="6", tool="check_output", says=("bad", "softmax-twice", "6"))
def softmax_twice(planted: bool) -> list[Finding]:
    model = network(nn.Softmax(1)) if planted else network()
    return check_output(model.eval(), batch(), loss=CROSS_ENTROPY)


@fault(32, "equal images with different labels", tool="can_overfit", says=("bad", "overfit-batch", ""))
def contradictory_labels(planted: bool) -> list[Finding]:
    twins = images(8).repeat(2, 1, 1, 1)
    opposed = torch.cat([torch.zeros(8), torch.ones(8)]).long()
    return can_overfit(network(), (twins, opposed if planted else labels(8).repeat(2)), CROSS_ENTROPY)


@fault(32, "a dead trunk", at="1.bias", tool="can_overfit", says=("bad", "overfit-batch", "2"))
def dead_trunk(planted: bool) -> list[Finding]:
    model = network()
    if planted:
        nn.init.constant_(model[1].bias, -10.0)  # type: ignore[arg-type]
    return can_overfit(model, batch(), CROSS_ENTROPY)


@fault(33, "batch normalization is left in train mode", at="1", tool="check_output", says=("bad", "batch-leak", "1"))
def batch_leak(planted: bool) -> list[Finding]:
    model = network().eval()
    model[1].train(planted)
    return check_output(model, batch())


@fault(35, "zero_grad is missing", says=("warn", "accumulated", ""))
def missing_zero_grad(planted: bool) -> Report:
    return train(mlp(), 41, lr=1e-4, zero_grad=not planted)


@fault(36, "eval() is not called before an evaluation", at="4", tool="check_output", says=("warn", "random-eval", "4"))
def forgotten_eval(planted: bool) -> list[Finding]:
    return check_output(network().train(planted), batch())


@fault(36, "train() is not called before a training", at="1", tool="check_training", says=("warn", "frozen", "1"))
def forgotten_train(planted: bool) -> list[Finding]:
    model = network().train(not planted)
    return check_training(model, [batch(), batch(seed=1)], CROSS_ENTROPY, torch.optim.Adam(model.parameters()))
