"""Planted faults 1 to 8 and 21 to 23: units that are dead, saturated, constant or alike, and gradients over depth."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn

from benchmarks.faults.fault import fault
from benchmarks.faults.networks import batch, network
from benchmarks.faults.trainings import Functional, batches, he, mlp, train
from gradcam_kit.diagnostics import Finding, Report, check_output


@fault(1, "a ReLU layer is dead (bias -20)", at="2.bias", says=("bad", "dead", "3"))
def dead_layer(planted: bool) -> Report:
    model = mlp()
    if planted:
        nn.init.constant_(model[2].bias, -20.0)  # type: ignore[arg-type]
    return train(model)


@fault(2, "30 % of the units are dead", at="2.bias", says=("warn", "dead", "3"))
def dead_units(planted: bool) -> Report:
    model = mlp()
    if planted:
        with torch.no_grad():
            model[2].bias[:10] = -100.0  # type: ignore[operator]
    return train(model)


@fault(3, "a functional ReLU is dead", at="first.bias", says=("bad", "dead", "first"))
def dead_function(planted: bool) -> Report:
    model = Functional(norm=False)
    if planted:
        nn.init.constant_(model.first.bias, -100.0)
    return train(model)


@fault(3, "a functional ReLU after batch normalization is dead", at="norm.bias", says=("bad", "dead", "norm"))
def dead_function_behind_norm(planted: bool) -> Report:
    model = Functional(norm=True)
    if planted:
        nn.init.constant_(model.norm.bias, -100.0)  # type: ignore[arg-type]
    return train(model)


@fault(4, "a ReLU layer dies in step 60 of 80", at="2.bias", says=("bad", "dead", "3"))
def dies_later(planted: bool) -> Report:
    model = mlp()

    def kill(step: int) -> AbstractContextManager[None]:
        if planted and step == 60:
            nn.init.constant_(model[2].bias, -1000.0)  # type: ignore[arg-type]
        return nullcontext()

    return train(model, 80, window=10, around=kill)


def _saturated(planted: bool, activation: type[nn.Module]) -> Report:
    model = mlp(2, activation=activation)
    if planted:
        model[0].weight.data.mul_(50)  # type: ignore[operator]
    return train(model)


@fault(5, "a sigmoid is saturated (weights x 50)", at="0.weight", says=("bad", "saturated", "1"))
def saturated_sigmoid(planted: bool) -> Report:
    return _saturated(planted, nn.Sigmoid)


@fault(6, "a tanh is saturated (weights x 50)", at="0.weight", says=("bad", "saturated", "1"))
def saturated_tanh(planted: bool) -> Report:
    return _saturated(planted, nn.Tanh)


@fault(
    6,
    "a tanh is saturated (weights x 100); the twin has smaller weights, and large values before them",
    at="2",
    says=("bad", "saturated", "3"),
)
def saturated_or_large(planted: bool) -> Report:
    model = he(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)))
    if planted:
        model[2].weight.data.mul_(100)  # type: ignore[index]
    else:
        model[0].weight.data.mul_(3)  # type: ignore[index]
        model[2].weight.data.mul_(0.3)  # type: ignore[index]
    return train(model)


@fault(7, "20 layers with sigmoids; the twin has leaky ReLU", at="", says=("bad", "vanishing", "0"))
def vanishing(planted: bool) -> Report:
    return train(mlp(20, activation=nn.Sigmoid if planted else partial(nn.LeakyReLU, 0.3), width=96), 10)


@fault(8, "weights of 20 layers start 3 times too large", at="", says=("bad", "exploding", "0"))
def exploding(planted: bool) -> Report:
    return train(he(mlp(20, activation=nn.LeakyReLU), gain=3.0 if planted else 1.0), 1)


@fault(21, "the weights of the head are 0", at="5", tool="check_output", says=("bad", "constant-output", "5"))
def constant_head(planted: bool) -> list[Finding]:
    model = network().eval()
    if planted:
        nn.init.zeros_(model[5].weight)  # type: ignore[arg-type]
    return check_output(model, batch())


@fault(21, "the trunk is dead, so the outputs are constant", at="1.bias", tool="check_output",
       says=("bad", "constant-output", "2"))  # fmt: skip
def constant_trunk(planted: bool) -> list[Finding]:
    model = network().eval()
    if planted:
        nn.init.constant_(model[1].bias, -100.0)  # type: ignore[arg-type]
    return check_output(model, batch())


@fault(21, "the output of a layer is the same for every input", at="2.weight", says=("bad", "constant", "2"))
def constant_layer(planted: bool) -> Report:
    model = mlp()
    if planted:
        nn.init.constant_(model[2].weight, 1e-30)  # type: ignore[arg-type]
        nn.init.ones_(model[2].bias)  # type: ignore[arg-type]
    return train(model, data=batches(1, n=128))  # only one step, because further steps would change the weights


@fault(22, "the features of a layer have rank 1", at="2.weight", says=("bad", "collapsed", "2"))
def collapsed(planted: bool) -> Report:
    model = mlp()
    if planted:
        model[2].weight.data.copy_(torch.outer(torch.randn(32), torch.randn(32)))  # type: ignore[operator]
    return train(model, data=batches(10))


@fault(23, "half of the channels repeat the others", at="2.weight", says=("warn", "redundant", "2"))
def duplicated(planted: bool) -> Report:
    model = mlp()
    if planted:
        with torch.no_grad():
            model[2].weight[16:] = model[2].weight[:16]  # type: ignore[index, operator]
    return train(model, data=batches(10))
