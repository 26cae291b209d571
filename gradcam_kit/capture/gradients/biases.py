"""Multiply each bias of a model by the gradient at the output of its module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.balance.backward import balanced
from gradcam_kit.capture.gradients.backward import differentiate
from gradcam_kit.capture.layouts import Tokens
from gradcam_kit.capture.model.inputs import Inputs
from gradcam_kit.capture.model.trees import whole
from gradcam_kit.capture.provenance.evidence import Evidence, recall
from gradcam_kit.capture.provenance.settling import is_in_doubt, settle_layout
from gradcam_kit.errors import CaptureError, ShapeError


def implicit_bias(module: nn.Module) -> Tensor | None:
    """Return the constant that a module adds: its bias, or beta - mu gamma / sigma for a batch norm in eval mode.

    Parameters that are distributed over devices (DTensor) are gathered, which is a collective operation that all ranks
    must enter.
    """
    bias = whole(getattr(module, "bias", None))
    mean, variance = whole(getattr(module, "running_mean", None)), whole(getattr(module, "running_var", None))
    if isinstance(mean, Tensor) and isinstance(variance, Tensor):
        scale = (variance + getattr(module, "eps", 0.0)).rsqrt()
        weight = whole(getattr(module, "weight", None))
        shift = -mean * (scale if weight is None else scale * weight)
        return (shift if bias is None else bias + shift).detach()
    return bias.detach() if isinstance(bias, Tensor) and bias.ndim == 1 else None


def _has_bias(module: nn.Module) -> bool:
    """Whether `implicit_bias` returns a bias, determined without gathering distributed parameters."""
    if isinstance(getattr(module, "running_mean", None), Tensor):
        return isinstance(getattr(module, "running_var", None), Tensor) or _is_bias(getattr(module, "bias", None))
    return _is_bias(getattr(module, "bias", None))


def _is_bias(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1


class BiasRecorder:
    """Records the outputs of all modules with a bias, separately for each run of a module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.runs: list[tuple[nn.Module, Tensor]] = []
        self.recomputing = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the hooks for the duration of the block."""
        with holding_hooks() as attach:
            for module in self.model.modules():
                if _has_bias(module):
                    attach.after(module, self._hook)
            yield

    def _hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        if not self.recomputing:
            self.runs.append((module, output))
        return output.clone()  # a later in-place operation must not change the record

    def products(
        self,
        scores: Tensor,
        inputs: Inputs,
        balanced_for: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return bias * d score / d output for runs that affect a score, `(n, [m,] k, *s)` or `(n, [m,] k)`.

        Products at tokens without a position are summed and have no position axes.

        Args:
            scores: the explained scores.
            inputs: the inputs of the forward pass.
            balanced_for: for balanced gradients, the captured tensors of the layers that are explained with the biases,
                and the model's outputs.
        """
        self.recomputing = True  # do not record the modules that checkpointing recomputes
        outputs = [output for _, output in self.runs]
        with nullcontext() if balanced_for is None else balanced(scores, *balanced_for):
            by_target = differentiate(scores, outputs, keep=True) if outputs else []
        found = []
        for j, (module, output) in enumerate(self.runs):
            bias = implicit_bias(module)
            columns = [column[j] for column in by_target]
            if bias is None or all(gradient is None for gradient in columns):
                continue
            if len(output) != inputs.n:
                raise CaptureError(
                    f"a {type(module).__name__} with a bias ran on {len(output)} rows for {inputs.n} "
                    "images, so that each image's share of the bias is unknown; choose a method that does "
                    "not use biases"
                )
            terms_of = [self._products(module, bias, output.detach(), gradient, inputs) for gradient in columns]
            terms = zip(*terms_of, strict=True)
            found += [torch.stack(own, 1) if scores.ndim == 2 else own[0] for own in terms]
        return tuple(found)

    def is_in_doubt(self, size: Sequence[int]) -> bool:
        """Whether a run returned tokens whose shape does not show whether they are positions."""
        return any(output.ndim == 3 and is_in_doubt(output.shape, size, module) for module, output in self.runs)

    def _products(
        self, module: nn.Module, bias: Tensor, output: Tensor, gradient: Tensor | None, inputs: Inputs
    ) -> list[Tensor]:
        """Return the term of one run as maps, followed by the summed terms of tokens without a position, if any."""
        product: Tensor = whole(torch.zeros_like(output) if gradient is None else gradient)
        output = whole(output)
        if len(bias) not in output.shape[1:]:
            raise CaptureError(
                f"a module with a bias of {len(bias)} entries returned {tuple(output.shape)}, which looks "
                "like one device's part of the output; run the whole model on one device, or choose a "
                "method that does not use biases"
            )
        if output.ndim == 2:
            return [product * bias]
        try:
            evidence = recall(self.model, inputs) or Evidence()
            layout = settle_layout(output.shape, inputs.size, self.model, "", module, inputs.n, evidence)
            maps = layout.to_maps(product)
            if maps.shape[1] == len(bias):
                terms = [maps * bias.view(-1, *(1 for _ in maps.shape[2:]))]
                if isinstance(layout, Tokens) and layout.prefix + layout.suffix:
                    terms.append(product.sum(1) * bias - terms[0].flatten(2).sum(2))
                return terms
        except ShapeError:
            pass
        # The tokens do not form a grid, so keep only the sum of their terms.
        axis = -1 if output.shape[-1] == len(bias) else 1
        return [(product.movedim(axis, -1) * bias).flatten(1, -2).sum(1)]
