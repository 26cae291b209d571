"""Find out why a loss is flat or explodes: check outputs, modes, optimizer, gradients, updates and one batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import nn

from gradcam_kit.capture import check_model
from gradcam_kit.diagnostics.checks.batches import BatchOf, Pair, call, moved, pairs_of, samples
from gradcam_kit.diagnostics.checks.curves import diverged
from gradcam_kit.diagnostics.checks.loss import check_loss
from gradcam_kit.diagnostics.checks.output import check_output
from gradcam_kit.diagnostics.checks.overfit import can_overfit
from gradcam_kit.diagnostics.checks.preserving import copied_together, device_of, left_as_found, random_states
from gradcam_kit.diagnostics.checks.steps import DROPOUTS, Steps, train, update_findings
from gradcam_kit.diagnostics.checks.tasks import Loss, outputs_of, read_task
from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.options import positive_int

_RATE = 1e-3
_SHOWN = 3

Watch = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Any]]


def check_training(
    model: Any,
    loader: Any,
    loss: Loss,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    steps: int = 20,
    batch: BatchOf | None = None,
    trained: bool = False,
) -> list[Finding]:
    """Find likely causes of a training loss that is flat or explodes, before or after the training run fails.

    The checks run in this order: `check_output`; modules left in eval mode; parameters missing from the optimizer;
    `check_loss`; the size of updates and the loss over `steps` steps with the settings of the optimizer; `can_overfit`.
    All training happens on copies: the model, the optimizer, gradients, modes and random states are not changed.

    Args:
        model: the model in its state at the start of training.
        loader: iterable of batches `(images, labels)`; at most `steps` of them are read.
        loss: `loss(output, labels)`, which returns one number.
        optimizer: optimizer of the model's parameters; None = Adam with a learning rate of 1e-3, whose updates are not
            judged.
        steps: number of training steps over the batches.
        batch: function that converts an item of the loader to a pair `(images, labels)`, for loaders of mappings or
            longer tuples.
        trained: whether the weights are already trained; if so, the first loss is not judged.

    Returns:
        Findings, the most severe first, and at most one of each kind for each layer.

    Raises:
        InputError: a loader that does not yield pairs, or yields nothing; see also `check_loss`.
        ShapeError: different numbers of inputs and labels.
        OptionError: `steps` is less than 1.
    """
    model = check_model(model)
    steps = positive_int("steps", steps)
    with random_states(model):
        batches = list(islice(pairs_of(loader, batch), steps))
    first = batches[0]
    found = [
        finding
        for finding in check_output(model, first, loss=loss)
        if not (model.training and finding.kind in ("random-eval", "batch-leak") and finding.level == "warn")
    ]
    found += mode_findings(model)
    if optimizer is not None:
        found += optimizer_findings(model, optimizer)
    if any(finding.kind in ("nonfinite", "label-range") for finding in found):
        return worst_first(found)  # all further checks would fail, or report the same fault
    found += check_loss(model, first, loss, optimizer=optimizer, trained=trained)
    is_detached = any(finding.kind == "no-gradient" and finding.value is None for finding in found)
    if not is_detached and not any(finding.kind == "nonfinite" for finding in found):
        found += run_findings(model, batches, loss, optimizer, steps)
        found += can_overfit(model, first, loss)
    if any(finding.kind == "diverged" for finding in found):
        found = [finding for finding in found if finding.kind != "plateau"]  # both kinds describe the same fault
    once = {(finding.kind, finding.layer): finding for finding in reversed(worst_first(found))}
    return worst_first(reversed(once.values()))


def mode_findings(model: nn.Module) -> list[Finding]:
    """Return a finding if modules with dropout or batch statistics are in eval mode."""
    kinds = nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm
    differing = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, kinds) or type(module).__name__ in DROPOUTS
    ]
    asleep = [name for name, module in differing if not module.training]
    if not asleep:
        return []
    more = f" and {len(asleep) - _SHOWN} more" if len(asleep) > _SHOWN else ""
    return [
        Finding(
            "warn",
            "frozen",
            asleep[0],
            f"In eval mode while training: {', '.join(asleep[:_SHOWN])}{more} ({len(asleep)} of {len(differing)} "
            "modules with dropout or batch statistics)",
            len(asleep) / len(differing),
            0.0,
            None,
            "Call model.train() after each evaluation, unless these modules are frozen on purpose",
            "definition",
        )
    ]


def optimizer_findings(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Finding]:
    """Return findings about parameters missing from an optimizer, and repeated, frozen or foreign parameters in it."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = {id(parameter) for parameter in held}
    named = dict(model.named_parameters())
    missing = [name for name, parameter in named.items() if parameter.requires_grad and id(parameter) not in ids]
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad and id(parameter) in ids]
    foreign = len(ids - {id(parameter) for parameter in named.values()})
    found = []
    times = Counter(map(id, held))
    twice = [name for name, parameter in named.items() if times[id(parameter)] > 1]
    if twice:
        found.append(
            Finding(
                "warn", "update", twice[0] if len(twice) == 1 else _common(twice),
                f"The optimizer has {len(twice)} of {len(named)} parameters more than once: {_few(twice)}",
                float(len(twice)), 0.0, None,
                "Each occurrence adds one update per step; put each parameter in exactly one group", "definition",
            )
        )  # fmt: skip
    if missing:
        found.append(
            Finding(
                "bad",
                "not-in-optimizer",
                missing[0] if len(missing) == 1 else _common(missing),
                f"The optimizer lacks {len(missing)} of {len(named)} parameters: {_few(missing)}",
                float(len(missing)),
                0.0,
                None,
                "Build the optimizer from model.parameters() after replacing layers, or call add_param_group",
                "definition",
            )
        )
    if foreign:
        found.append(
            Finding(
                "bad" if foreign == len(ids) else "warn",
                "not-in-optimizer",
                "",
                f"The model does not have {foreign} of the {len(ids)} tensors in the optimizer",
                float(foreign),
                0.0,
                None,
                "If the optimizer was built before layers were replaced, build it again. Parameters of a loss are fine",
                "definition",
            )
        )
    if frozen:
        found.append(
            Finding(
                "warn",
                "frozen",
                frozen[0] if len(frozen) == 1 else _common(frozen),
                f"The optimizer has parameters with requires_grad=False ({len(frozen)}): {_few(frozen)}",
                float(len(frozen)),
                0.0,
                None,
                "Call requires_grad_(True) on these parameters to train them, or leave them out of the optimizer",
                "definition",
            )
        )
    return found


def run_findings(
    model: nn.Module,
    batches: list[Pair],
    loss: Loss,
    optimizer: torch.optim.Optimizer | None,
    steps: int,
    watch: Watch | None = None,
) -> list[Finding]:
    """Train a copy of the model with the optimizer's settings, and return findings about its losses and updates.

    Args:
        model: the model in its state at the start of training.
        batches: pairs of inputs and labels.
        loss: `loss(output, labels)`, which returns one number.
        optimizer: optimizer of the model's parameters; None = Adam, whose updates are not judged.
        steps: number of training steps.
        watch: function from the copy and its optimizer to a context manager, such as `ModelDiagnostics`, which is
            entered for the training of the copy.
    """
    device = device_of(model)
    batches = [(moved(inputs, device), moved(labels, device)) for inputs, labels in batches]
    with left_as_found(model, batches, seed=0):
        copy, *copies = copied_together(model, *([] if optimizer is None else [optimizer]))
        copy.train()
        trainable = [parameter for parameter in copy.parameters() if parameter.requires_grad]
        if not trainable:
            return []
        tool = copies[0] if copies else torch.optim.Adam(trainable, lr=_RATE)
        with nullcontext() if watch is None else watch(copy, tool):
            seen = train(copy, batches, loss, tool, steps)
        with torch.no_grad():
            scores = outputs_of(call(model, batches[0][0]))
    chance = read_task(scores, batches[0][1], loss).chance or 0.0
    rates = sorted({float(group["lr"]) for group in tool.param_groups})
    rate = f" at a learning rate of {', '.join(f'{rate:.2g}' for rate in rates)}"
    found = [] if optimizer is None else update_findings(seen, rate)
    return [*_loss_findings(seen, chance, samples(batches[0][0]), rate), *found]


def _loss_findings(seen: Steps, chance: float, n: int, rate: str) -> list[Finding]:
    if seen.losses and not math.isfinite(seen.losses[-1]):
        text = f"The loss is {seen.losses[-1]} after {len(seen.losses) - 1} steps{rate}"
        advice = "Lower the learning rate, clip gradients, or call find_nonfinite(model) to find the module at fault"
        return [Finding("bad", "nonfinite", "", text, None, None, n, advice, "definition")]
    last = diverged(seen.losses, chance)
    if last is None:
        return []
    return [
        Finding(
            "bad",
            "diverged",
            "",
            f"The loss rises from {seen.losses[0]:.4g} to {last:.4g} in {len(seen.losses) - 1} steps{rate}",
            last,
            max(1.5 * seen.losses[0], 1.5 * chance),
            n,
            "Lower the learning rate by a factor of 10 or more, or add a warmup",
            "convention: 1.5 times the first loss or the chance-level loss, whichever is larger",
        )
    ]


def _common(names: list[str]) -> str:
    """Return the name of the innermost module that holds all of the named parameters."""
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
