"""Check the loss of an untrained model: its first value, its gradients, and whether it falls."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture import check_model
from gradcam_kit.diagnostics.checks.batches import call, loss_value, moved, read_pair, samples
from gradcam_kit.diagnostics.checks.preserving import copied, copied_together, device_of, left_as_found
from gradcam_kit.diagnostics.checks.steps import Steps, broadcast_finding, gradient_findings, train
from gradcam_kit.diagnostics.checks.tasks import Loss, Task, outputs_of, read_task
from gradcam_kit.diagnostics.findings import Finding, worst_first

_STEPS = 10
_OFF = 0.2  # tolerance relative to the chance-level loss
_FALLEN = 1e-3  # minimum fall of the loss, as a share of the first loss
_RATE = 1e-3
_SHUFFLES = 3


def check_loss(
    model: Any,
    batch: Any,
    loss: Loss,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    trained: bool = False,
) -> list[Finding]:
    """Check the loss of one batch: its first value, its gradients, and ten steps on a copy of the model.

    Args:
        model: any module; a copy of it is trained, with a fixed seed.
        batch: inputs and labels.
        loss: `loss(output, labels)`, which returns one number.
        optimizer: optimizer of the model's parameters; a copy of it is used. None = Adam with a learning rate of 1e-3.
        trained: whether the weights are trained, so that the first value is not judged. A value below the chance-level
            loss is judged only if the loss stays that low with shuffled weights, because otherwise it was learned.

    Returns:
        Findings, the most severe first. Possible kinds: nonfinite, range (for the first value), no-gradient,
        label-range (for shapes that are broadcast) and plateau.

    Raises:
        InputError: a loss that is not one number, a batch that is not a pair, or a model that cannot be copied.
        ShapeError: different numbers of inputs and labels.
    """
    model = check_model(model)
    inputs, labels = read_pair(batch)
    device = device_of(model)
    inputs, labels = moved(inputs, device), moved(labels, device)
    with left_as_found(model, inputs, seed=0):
        copy, *copies = copied_together(model, *([] if optimizer is None else [optimizer]))
        copy.train()
        n = samples(inputs)
        with torch.no_grad():
            output = call(copy, inputs)
            scores = outputs_of(output)
            if broken := broadcast_finding(scores, labels, loss):
                return broken
            first = loss_value(loss, output, labels)
            task = read_task(scores, labels, loss)
            if not trained and task.chance is not None and 0 <= first < (low := (1 - _OFF) * task.chance):
                trained = _is_learned(copy, inputs, labels, loss, low)
        found = first_value_findings(first, task, n, trained)
        if any(finding.kind == "nonfinite" for finding in found):
            return found
        tool = copies[0] if copies else torch.optim.Adam(_trainable(copy), lr=_RATE)
        steps = train(copy, [(inputs, labels)], loss, tool, _STEPS)
    return worst_first([*found, *gradient_findings(model, steps, n), *_fall_findings(steps, n)])


def first_value_findings(first: Tensor, task: Task, n: int, trained: bool) -> list[Finding]:
    """Return a finding if the first value of a loss is not finite, or far from the chance-level loss."""
    value = float(first)
    if not math.isfinite(value):
        return [
            Finding(
                "bad",
                "nonfinite",
                "",
                f"The loss is {value} before any step",
                value,
                None,
                n,
                "Call find_nonfinite(model) to find the module at fault. If none is named, look for a logarithm, "
                "a root or a division in the loss itself. Check labels and inputs with check_data",
                "definition",
            )
        ]
    chance = task.chance
    if chance is None or trained or abs(value - chance) <= _OFF * chance:
        return []
    per_sample = value / max(1, n)
    if value < 0:
        why = "A cross-entropy is never negative: check the sign of the loss"
    elif abs(per_sample - chance) <= _OFF * chance:
        why = f"The loss is {n} times too large, probably because of reduction='sum'; use reduction='mean'"
    elif value < chance:
        why = (
            "The loss is too low even with shuffled weights, so it was not learned: is it multiplied by a factor, or "
            "divided by more than the number of labels, or is the label among the inputs?"
        )
    else:
        why = (
            "The outputs of the last layer are too large at the start: scale down its initialization, and "
            "normalize inputs"
        )
    return [
        Finding(
            "warn",
            "range",
            "",
            f"The first loss is {value:.4g}, but guessing among {task.classes} classes gives {chance:.4g}",
            value,
            chance,
            n,
            why,
            "ln(number of classes); the tolerance of 20 % is a convention",
        )
    ]


def _is_learned(model: nn.Module, inputs: Any, labels: Any, loss: Loss, limit: float) -> bool:
    """Whether a loss below `limit` was learned: with shuffled weights, most losses reach the limit."""
    below, shuffled = 0, copied(model)
    for _ in range(_SHUFFLES):
        for parameter in shuffled.parameters():
            values = parameter.reshape(-1)
            parameter.copy_(values[torch.randperm(len(values)).to(values.device)].view_as(parameter))
        below += float(loss_value(loss, call(shuffled, inputs), labels)) < limit
    return 2 * below < _SHUFFLES


def _fall_findings(steps: Steps, n: int) -> list[Finding]:
    if steps.detached or len(steps.losses) < 3:
        return []
    first, best = steps.losses[0], min(steps.losses[1:])
    if not all(map(math.isfinite, steps.losses)):
        return [
            Finding(
                "bad",
                "nonfinite",
                "",
                f"The loss is {steps.losses[-1]} after {len(steps.losses) - 1} steps on one batch",
                None,
                None,
                n,
                "Lower the learning rate, or call find_nonfinite(model) to find the module at fault",
                "definition",
            )
        ]
    limit = first - _FALLEN * abs(first)
    if best < limit or first == 0:
        return []
    return [
        Finding(
            "warn",
            "plateau",
            "",
            f"The loss does not fall in {len(steps.losses) - 1} steps on one batch: from {first:.4g} to {best:.4g} at "
            "best",
            best,
            limit,
            n,
            "Check that gradients reach the weights, that the optimizer has all parameters, and that the "
            "learning rate is reasonable",
            "convention: a fall of at least 0.1 %",
        )
    ]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters, or one unused parameter if there is none, as Adam rejects an empty list."""
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return found or [nn.Parameter(torch.zeros(1))]
