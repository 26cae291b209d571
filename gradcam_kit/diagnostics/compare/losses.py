"""Compute the loss of each sample separately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from gradcam_kit.capture import map_output
from gradcam_kit.errors import InputError, ShapeError, TargetError, kind_of
from gradcam_kit.targets.outputs import find_logits

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class SampleLosses:
    """A target that maps the model's output to the loss of each sample, `(n,)`.

    Attributes:
        labels: labels of the samples, in any form that the loss accepts.
        n: number of samples.
        loss: `loss(output, labels)`; None = the cross-entropy.
    """

    labels: Any
    n: int
    loss: Loss | None = None

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Return the loss of each sample.

        Raises:
            InputError: labels that the cross-entropy does not accept, or a loss that is not a tensor.
            ShapeError: the number of losses does not match the samples.
        """
        if self.loss is None:
            return _cross_entropy(output, self.labels)
        value = self.loss(output, self.labels)
        if not isinstance(value, Tensor):
            raise InputError(f"the loss returns {kind_of(value)}; expected a tensor, as torch.nn losses do")
        if value.ndim and len(value) == self.n and (self.n > 1 or value.ndim == 1):
            return value.flatten(1).mean(1) if value.ndim > 1 else value
        if value.numel() != 1:
            raise ShapeError(
                f"the loss has shape {tuple(value.shape)} for {self.n} samples; expected one number, or ({self.n},)"
            )
        if self.n == 1:
            return value.reshape(1)
        return torch.stack([self.loss(*self._sample(output, i)).reshape(()) for i in range(self.n)])

    def select(self, index: Int[Tensor, " m"]) -> SampleLosses:
        """Return the target for rows that are copies of the samples in `index`."""
        labels = (
            self.labels[index.to(self.labels.device)]
            if isinstance(self.labels, Tensor)
            else [self.labels[i] for i in index.tolist()]
        )
        return replace(self, labels=labels, n=len(index))

    def _sample(self, output: Any, i: int) -> tuple[Any, Any]:
        def own(tensor: Tensor) -> Tensor:
            return tensor[i : i + 1] if tensor.ndim and len(tensor) == self.n else tensor

        return map_output(own, output), map_output(own, self.labels)


def _cross_entropy(output: Any, labels: Any) -> Float[Tensor, " n"]:
    try:
        logits = find_logits(output)
    except TargetError as error:
        raise InputError(f"{error}; or pass loss=, a function of the output and the labels") from error
    integer = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
    if not integer or logits.ndim < 2 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else kind_of(labels)
        raise InputError(
            f"the labels are {found} for outputs {tuple(logits.shape)}; the cross-entropy needs class indices "
            f"({len(logits) if logits.ndim else 1},), or one per position for maps. For another task, pass loss=, a "
            "function of output and labels"
        )
    low, high = int(labels.min()), int(labels.max())
    if (low < 0 and low != -100) or high >= logits.shape[1]:
        raise InputError(
            f"labels go from {low} to {high}, but the model has {logits.shape[1]} outputs; expected class indices from "
            f"0 to {logits.shape[1] - 1}"
        )
    values = functional.cross_entropy(logits, labels.to(logits.device).long(), reduction="none")
    return values.flatten(1).mean(1) if values.ndim > 1 else values
