"""Check a model's output for one batch: finiteness, probabilities, label range, leaks between samples, randomness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit.capture import check_model
from gradcam_kit.diagnostics.checks.batches import call, moved, read_pair, samples
from gradcam_kit.diagnostics.checks.preserving import device_of, left_as_found
from gradcam_kit.diagnostics.checks.probing import (
    ROUNDING,
    Probe,
    awake_dropout,
    difference_of,
    floating_leaves,
    is_dropout,
    is_norm,
    leak_finding,
    random_finding,
)
from gradcam_kit.diagnostics.checks.tasks import (
    Loss,
    Task,
    ignored_label,
    is_cross_entropy,
    is_sigmoid_loss,
    read_task,
)
from gradcam_kit.diagnostics.findings import Finding, Level, worst_first
from gradcam_kit.errors import raise_interruption

_SUM = 1e-4  # tolerance for the sum of probabilities


def check_output(model: Any, batch: Any, *, loss: Loss | None = None) -> list[Finding]:
    """Check the output of a model for one batch of inputs.

    The model runs in eval mode. If it is already in eval mode, the modes of its submodules are left unchanged, so that
    a submodule left in train mode is found. If it is in train mode and has dropout or batch normalization, it runs in
    train mode, too. The model, its gradients and random states are not changed.

    Args:
        model: any module.
        batch: a pair of inputs (a tensor, or a tuple or mapping of arguments) and labels; labels may be None.
        loss: the training loss; None = cross-entropy if the labels are class indices.

    Returns:
        Findings, the most severe first; an empty list if nothing was found. Possible kinds: nonfinite, label-range,
        softmax-twice, constant-output, batch-leak, random-eval and range.

    Raises:
        InputError: a batch that is not a pair, or a model that is not a module.
        ShapeError: different numbers of inputs and labels.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)).eval()
        >>> [finding.kind for finding in check_output(model, (torch.eye(3), torch.tensor([0, 1, 0])))]
        ['softmax-twice']
    """
    model = check_model(model)
    if isinstance(batch, tuple | list) and len(batch) == 2 and batch[1] is None:
        inputs, labels = read_pair((batch[0], torch.zeros(samples(batch[0]))))[0], None
    else:
        inputs, labels = read_pair(batch)
    device = device_of(model)
    inputs, labels = moved(inputs, device), moved(labels, device)
    was_training = model.training
    with left_as_found(model, inputs):
        if was_training:
            modes = [(module, module.training) for module in model.modules()]
            model.eval()
        probe = Probe(model, inputs)
        found = probe.findings()
        scores = probe.scores
        if scores is not None and not any(finding.kind == "nonfinite" for finding in found):
            task = read_task(scores, labels, loss)
            found += _label_findings(scores, labels, loss, task)
            found += _probability_findings(model, scores, labels, loss, task)
        if was_training:
            for module, training in modes:
                module.training = training
            found += _mode_findings(model, inputs, probe)
    return worst_first(found)


def _label_findings(scores: Tensor, labels: Any, loss: Loss | None, task: Task) -> list[Finding]:
    if task.kind != "classes" or labels.is_floating_point():
        return []
    known = labels[labels != ignored_label(loss)]
    if not known.numel():
        return []
    low, high, last = int(known.min()), int(known.max()), task.classes - 1
    if low >= 0 and high <= last:
        return []
    off = " (labels that start at 1 are off by one)" if low == 1 and high == task.classes else ""
    return [
        Finding(
            "bad",
            "label-range",
            "",
            f"Labels go from {low} to {high}, but the model has classes 0 to {last}{off}",
            float(high if high > last else low),
            float(last),
            len(labels),
            "Subtract 1 from labels that start at 1, or give the last layer as many outputs as there are classes",
            "definition of class indices",
        )
    ]


def _probability_findings(
    model: nn.Module, scores: Tensor, labels: Any, loss: Loss | None, task: Task
) -> list[Finding]:
    name, last = [(name, module) for name, module in model.named_modules() if not list(module.children())][-1]
    if is_sigmoid_loss(loss) and isinstance(last, nn.Sigmoid) and bool(((scores >= 0) & (scores <= 1)).all()):
        return [_twice("bad", "sigmoid", type(loss).__name__, None, len(scores), name)]
    layer = name if isinstance(last, nn.Softmax | nn.Softmax2d) else ""
    if task.kind != "classes":
        is_plain = labels is None and scores.ndim == 2 and scores.shape[1] > 1
        if is_plain and _are_shares(scores, 1):
            return [_twice("warn", "softmax", "cross-entropy", _sum_error(scores, 1), len(scores), layer)]
        return []
    if not _are_shares(scores, task.axis):
        return _positive_logarithms(scores, loss)
    applies = is_cross_entropy(loss)
    if applies is None and loss is not None:
        applies = _acts_as_cross_entropy(scores, labels, loss, task)
    if applies is False:
        return []
    assumed = "cross-entropy, which is assumed because no loss was given," if loss is None else "cross-entropy"
    return [_twice("bad", "softmax", assumed, _sum_error(scores, task.axis), len(scores), layer)]


def _twice(level: Level, function: str, loss: str, value: float | None, n: int, layer: str) -> Finding:
    return Finding(
        level,
        "softmax-twice",
        layer,
        f"The outputs already are probabilities, but {loss} applies a {function} itself",
        value,
        None if value is None else _SUM,
        n,
        f"Leave out the last {function} of the model and train on logits; gradients of the doubled function are tiny",
        "definition: probabilities are from 0 to 1; those of a softmax sum to 1",
    )


def _positive_logarithms(scores: Tensor, loss: Loss | None) -> list[Finding]:
    if not (isinstance(loss, nn.NLLLoss) or loss is functional.nll_loss) or float(scores.amax()) <= _SUM:
        return []
    return [
        Finding(
            "bad",
            "range",
            "",
            "NLLLoss expects log-probabilities, but some outputs are above 0",
            *(float(scores.amax()), 0.0, len(scores)),
            "End the model with LogSoftmax, or train it with CrossEntropyLoss",
            "definition of log-probabilities",
        )
    ]


def _acts_as_cross_entropy(scores: Tensor, labels: Tensor, loss: Loss, task: Task) -> bool:
    """Whether a user-defined loss returns the cross-entropy of this batch."""
    moved_scores = scores.movedim(task.axis, 1)
    try:
        own = loss(scores, labels)
        expected = functional.cross_entropy(moved_scores, labels if labels.is_floating_point() else labels.long())
    except Exception as error:  # a user-defined loss may raise anything
        raise_interruption(error)
        return False
    return isinstance(own, Tensor) and own.numel() == 1 and abs(float(own) - float(expected)) < 1e-3 * float(expected)


def _mode_findings(model: nn.Module, inputs: Any, probe: Probe) -> list[Finding]:
    """Return findings about outputs that differ in train mode, for a model that was passed in train mode."""
    norms = [name for name, module in model.named_modules() if is_norm(module) and module.training]
    has_dropout = any(map(is_dropout, model.modules()))
    if not norms and not has_dropout:
        return []
    try:
        with torch.no_grad():
            first, second = (floating_leaves(call(model, inputs)) for _ in range(2))
    except (RuntimeError, ValueError):  # train mode can fail, for example on a single sample with batch norm
        return []
    found = []
    if (random := difference_of(first, second)) > ROUNDING and has_dropout:
        text = "the model is in train mode, in which dropout changes its outputs from pass to pass"
        found.append(random_finding("warn", random, probe.n, text, awake_dropout(model)))
    if norms and (change := difference_of(probe.leaves, first)) > ROUNDING:
        text = "The model is in train mode, so batch normalization mixes the samples of a batch"
        found.append(leak_finding("warn", norms[0], text, change, ROUNDING, probe.n))
    return found


def _are_shares(scores: Tensor, axis: int) -> bool:
    limit = _SUM if scores.dtype in (torch.float32, torch.float64) else 0.01
    return bool((scores >= 0).all()) and _sum_error(scores, axis) <= limit


def _sum_error(scores: Tensor, axis: int) -> float:
    return float((scores.double().sum(dim=axis) - 1).abs().amax())
