"""Infer the task of a model from its outputs, labels and loss; an unclear task is not judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradcam_kit.errors import TargetError
from gradcam_kit.targets.outputs import find_logits

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Task:
    """The task inferred from outputs, labels and loss.

    Attributes:
        kind: "classes": one class for each sample or position; "binary": an independent binary decision for each
            output; "other": regression, several outputs, or anything else.
        classes: number of classes; 2 for "binary", 0 for "other".
        axis: axis of the classes in the outputs.
    """

    kind: Literal["classes", "binary", "other"]
    classes: int = 0
    axis: int = 1

    @property
    def chance(self) -> float | None:
        """The cross-entropy of uniform guessing, in nats; None if the task is "other"."""
        return math.log(self.classes) if self.classes > 1 else None


def outputs_of(output: Any) -> Tensor | None:
    """Return the tensor of scores in a model's output; None if there is no such tensor, or more than one."""
    try:
        found = find_logits(output)
    except TargetError:
        return None
    return found if found.is_floating_point() else None


def read_task(scores: Tensor | None, labels: Any, loss: Loss | None = None) -> Task:
    """Infer the task from outputs and labels; where these are ambiguous, the type of the loss decides."""
    if scores is None or not isinstance(labels, Tensor) or labels.ndim == 0:
        return Task("other")
    if is_cross_entropy(loss) is False and not _is_binary(loss) and _is_regression(loss):
        return Task("other")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        return _of_float_labels(scores, labels, loss)
    if labels.is_complex():
        return Task("other")
    if scores.ndim >= 2 and scores.shape[1] > 1 and labels.shape == (scores.shape[0], *scores.shape[2:]):
        last = scores.ndim > 2 and labels.shape == scores.shape[:-1]
        return Task("other") if last else Task("classes", scores.shape[1], 1)
    if scores.ndim > 2 and labels.shape == scores.shape[:-1]:
        return Task("classes", scores.shape[-1], scores.ndim - 1)
    squeezed = labels.numel() == scores.numel() and scores.numel() == len(labels)
    if squeezed and bool(((labels == 0) | (labels == 1)).all()):
        return Task("binary", 2)
    return Task("other")


def is_cross_entropy(loss: Loss | None) -> bool | None:
    """Whether a loss applies a softmax itself; None if unknown: for a user-defined loss, or without a loss."""
    if isinstance(loss, nn.CrossEntropyLoss) or loss is functional.cross_entropy:
        return True
    return False if _is_known(loss) else None


def ignored_label(loss: Loss | None) -> int:
    """Return the label that the loss ignores."""
    return int(getattr(loss, "ignore_index", -100))


def is_sigmoid_loss(loss: Loss | None) -> bool:
    """Whether a loss applies a sigmoid itself."""
    return isinstance(loss, nn.BCEWithLogitsLoss | nn.MultiLabelSoftMarginLoss) or (
        loss is functional.binary_cross_entropy_with_logits
    )


def _of_float_labels(scores: Tensor, labels: Tensor, loss: Loss | None) -> Task:
    values = labels.float()
    if labels.shape != scores.shape or not bool(((values >= 0) & (values <= 1)).all()):
        return Task("other")
    if _is_binary(loss):
        return Task("binary", 2)
    sums = values.sum(dim=1) if labels.ndim > 1 else values
    is_shared = labels.ndim > 1 and labels.shape[1] > 1 and bool(((sums - 1).abs() < 1e-3).all())
    if is_shared and is_cross_entropy(loss) is not False:
        return Task("classes", scores.shape[1], 1)
    return Task("binary", 2) if labels.dtype == torch.bool else Task("other")


def _is_binary(loss: Loss | None) -> bool:
    return is_sigmoid_loss(loss) or isinstance(loss, nn.BCELoss) or loss is functional.binary_cross_entropy


def _is_regression(loss: Loss | None) -> bool:
    kinds = nn.MSELoss | nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss | nn.PoissonNLLLoss
    return isinstance(loss, kinds) or loss in (functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss)


def _is_known(loss: Loss | None) -> bool:
    return _is_binary(loss) or _is_regression(loss) or isinstance(loss, nn.NLLLoss) or loss is functional.nll_loss
