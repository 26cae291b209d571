"""Run training steps on a copy of a model, and record losses, parameters that do not learn, and sizes of updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from math import isfinite
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit.diagnostics.checks.batches import Pair, call, loss_value
from gradcam_kit.diagnostics.checks.tasks import Loss
from gradcam_kit.diagnostics.findings import Finding

LONGEST = 60.0
"""Time limit in seconds for the training in a check."""

_SAMPLED = 4096
_SMALLEST, _LARGEST = 1e-5, 1e-1  # healthy range of the size of an update relative to the weights
_SHOWN, _SINGLE = 10, 3
_FIRST = 3  # number of steps whose updates are judged
DROPOUTS = ("DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d")
"""Class names of modules from other libraries that drop activations."""


@dataclass
class Steps:
    """Records of training steps.

    Attributes:
        losses: the loss before each step.
        learned: names of trainable parameters with a nonzero gradient in at least one step.
        reached: names of trainable parameters with a gradient, even if 0, in at least one step.
        ratios: for each step with gradients, the median over parameters with at least 2 axes of
            rms(update) / rms(parameter).
        detached: whether the loss had no graph, so that no step was taken.
        timed_out: whether time ran out before the last step.
    """

    losses: list[float] = field(default_factory=list)
    learned: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    ratios: list[float] = field(default_factory=list)
    detached: bool = False
    timed_out: bool = False


def train(
    model: nn.Module,
    batches: Iterable[Pair],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    until: Callable[[float], bool] = lambda _: False,
    seconds: float = LONGEST,
) -> Steps:
    """Train a model in place, and record its steps.

    Args:
        model: the model to train, which should be a copy; the model and the optimizer are changed.
        batches: pairs of inputs and labels; a list is repeated if it is shorter than `steps`.
        loss: `loss(output, labels)`.
        optimizer: optimizer of the model's parameters.
        steps: maximum number of steps.
        until: called with each loss; True ends the training.
        seconds: time limit.
    """
    seen, start = Steps(), time.monotonic()
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    watched = [parameter for _, parameter in named if parameter.ndim > 1 and id(parameter) in held]
    for _, (inputs, labels) in zip(range(steps), _endless(batches), strict=False):
        with torch.enable_grad():
            value = loss_value(loss, call(model, inputs), labels)
            seen.losses.append(float(value.detach()))
            if not isfinite(seen.losses[-1]) or until(seen.losses[-1]):
                break
            if not value.requires_grad:
                seen.detached = True
                break
            optimizer.zero_grad(set_to_none=True)
            value.backward()
        for name, parameter in named:
            if parameter.grad is not None:
                seen.reached.add(name)
                if name not in seen.learned and bool(parameter.grad.any()):
                    seen.learned.add(name)
        before = [_sample(parameter) for parameter in watched]
        optimizer.step()
        seen.ratios += _ratio(before, watched)
        if time.monotonic() - start > seconds:
            seen.timed_out = len(seen.losses) < steps
            break
    return seen


def gradient_findings(model: nn.Module, steps: Steps, n: int) -> list[Finding]:
    """Return findings about modules that do not learn: without gradients, or with gradients of 0 in every step."""
    if steps.detached:
        return [
            Finding(
                "bad",
                "no-gradient",
                "",
                "The loss has no graph, so nothing can learn",
                n=n,
                advice="Look for .detach(), .item(), .numpy(), torch.no_grad() or argmax between the model and the "
                "loss, and for a model without trainable parameters",
                source="definition",
            )
        ]
    if not steps.reached:
        return []
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = []
    for names, what, why in (
        (
            trainable - steps.reached,
            "no gradient at all",
            "Look for .detach() before the loss, and for modules that forward does not use",
        ),
        (
            steps.reached - steps.learned,
            f"a gradient of exactly 0 in each of {len(steps.losses)} steps",
            "Dead or saturated units in later layers block the gradient, or a factor of the loss is 0",
        ),
    ):
        places = _places(model, names, trainable)
        if len(places) > _SINGLE:  # a single fault is the likely cause, so report one finding for all of them
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            listed = ", ".join(place for place, _ in places[:_SHOWN]) + more
            found.append(_no_gradient("", f"{len(names)} parameters have {what}: {listed}", n, why))
        else:
            for place, count in places:
                text = f"{count} {'parameters have' if count > 1 else 'parameter has'} {what}"
                found.append(_no_gradient(place, text, n, why))
    return found


def _no_gradient(place: str, text: str, n: int, why: str) -> Finding:
    return Finding("bad", "no-gradient", place, text, 0.0, 0.0, n, why, "definition")


def update_findings(steps: Steps, rate: str) -> list[Finding]:
    """Return a finding if updates are too small or too large relative to the weights."""
    if not steps.ratios:
        return []
    middle = median(steps.ratios[:_FIRST])  # in later steps the model may already be dead
    if _SMALLEST <= middle <= _LARGEST:
        return []
    is_small = middle < _SMALLEST
    return [
        Finding(
            "warn",
            "update",
            "",
            f"A step changes the weights by {middle:.2g} of their size{rate}: too {'little' if is_small else 'much'}",
            middle,
            _SMALLEST if is_small else _LARGEST,
            len(steps.ratios),
            f"{'Raise' if is_small else 'Lower'} the learning rate until updates are about 1/1000 of the weights",
            "1e-3 from the CS231n notes; two orders of magnitude either way are a convention",
        )
    ]


def without_dropout(model: nn.Module) -> bool:
    """Switch off dropout in a model, in place, and return whether the model has any."""
    found = False
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in DROPOUTS:
            found |= bool(getattr(module, "p", None) or getattr(module, "drop_prob", None))
            module.eval()
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout:
            found, module.dropout = True, 0.0
    return found


def broadcast_finding(scores: Tensor | None, labels: Any, loss: Loss) -> list[Finding]:
    """Return a finding if a regression loss broadcasts outputs and labels of different shapes against each other."""
    elementwise = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
    functions = (functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss)
    is_elementwise = isinstance(loss, elementwise) or loss in functions
    if scores is None or not isinstance(labels, Tensor) or not is_elementwise or scores.shape == labels.shape:
        return []
    return [
        Finding(
            "bad",
            "label-range",
            "",
            f"Outputs have shape {tuple(scores.shape)} and labels {tuple(labels.shape)}, so the loss "
            "broadcasts them instead of comparing each output with its own label",
            float(labels.numel()),
            float(scores.numel()),
            len(scores) if scores.ndim else 1,
            "Give outputs and labels the same shape, for example with labels[:, None] or outputs.squeeze(1)",
            "definition of broadcasting",
        )
    ]


def _places(model: nn.Module, names: set[str], trainable: set[str]) -> list[tuple[str, int]]:
    """Return the outermost modules whose trainable parameters are all in `names`, and the other names, with counts."""
    left, places = set(names), []
    for module_name, _ in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        own = {name for name in trainable if name.startswith(prefix)}
        if own and own <= left:
            places.append((module_name, len(own)))
            left -= own
    return [*places, *((name, 1) for name in sorted(left))]


def _endless(batches: Iterable[Pair]) -> Iterator[Pair]:
    return iter(batches) if isinstance(batches, Iterator) else cycle(batches)


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLED)].clone()


def _ratio(before: list[Tensor], parameters: list[nn.Parameter]) -> list[float]:
    """Return a list with the median relative update of the weights; empty if no weight has a gradient."""
    ratios = []
    for old, parameter in zip(before, parameters, strict=True):
        if parameter.grad is not None and (size := float(old.norm())) > 0:
            ratios.append(float((_sample(parameter) - old).norm()) / size)
    return [median(ratios)] if ratios else []
