"""A model asked in different ways: twice, sample by sample, and for gradients that should not be there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.diagnostics.checks.batches import call, main_input, part, samples
from gradcam_kit.diagnostics.checks.tasks import outputs_of
from gradcam_kit.diagnostics.findings import Finding, Level
from gradcam_kit.errors import raise_interruption

_CONSTANT = 1e-8  # variance over samples, as a share of the mean square of the outputs
ROUNDING = 1e-3
"""Difference of outputs that may be due to another kernel, as a share of their largest value."""
_LEAKED = 1e-6  # gradient at other samples, as a share of the gradient at the own sample
_PROBED = 8  # samples in the batch whose gradients are taken


class Probe:
    """A model and its answers to one batch, asked in different ways."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model, self.inputs, self.n = model, inputs, samples(inputs)
        with torch.no_grad():
            output = call(model, inputs)
            self.again = floating_leaves(call(model, inputs))
        self.leaves = floating_leaves(output)
        self.scores = outputs_of(output)
        self.per_sample = self.scores is not None and self.scores.ndim > 0 and len(self.scores) == self.n

    def findings(self) -> list[Finding]:
        """Return what is wrong whatever the labels are."""
        broken = sum(int((~leaf.isfinite()).sum()) for leaf in self.leaves)
        if broken:
            values = sum(leaf.numel() for leaf in self.leaves)
            return [
                Finding(
                    "bad",
                    "nonfinite",
                    "",
                    f"{broken:,} of {values:,} output values are NaN or infinite",
                    float(broken),
                    0.0,
                    self.n,
                    "Find the module that makes the first of them with find_nonfinite(model)",
                    "definition",
                )
            ]
        found = []
        difference = difference_of(self.leaves, self.again)
        if difference > ROUNDING:
            found.append(random_finding("bad", difference, self.n, "the model answers the same batch differently"))
        if self.per_sample and self.n > 1:
            found += self._constant()
            found += self._leaks(is_random=difference > ROUNDING)
        return found

    def _constant(self) -> list[Finding]:
        assert self.scores is not None
        images = main_input(self.inputs)
        if bool((images == images[:1]).all()):
            return []
        flat = self.scores.flatten(1).double()
        power = float(flat.square().mean())
        share = float(flat.var(dim=0).amax()) / power if power > 0 else 0.0
        if share >= _CONSTANT:
            return []
        return [
            Finding(
                "bad",
                "constant-output",
                "",
                "The outputs are the same for each input",
                share,
                _CONSTANT,
                self.n,
                "The inputs do not reach the outputs: look for dead or saturated units, a layer whose weights are 0, "
                "or a learning rate that made the model collapse",
                "convention: variance over samples as a share of the mean square",
            )
        ]

    def _leaks(self, is_random: bool) -> list[Finding]:
        alone = 0.0 if is_random else self._alone()
        gradient = self._foreign_gradient()
        if alone <= ROUNDING and gradient <= _LEAKED:
            return []
        value, limit = (alone, ROUNDING) if alone > ROUNDING else (gradient, _LEAKED)
        training = [name for name, one in self.model.named_modules() if is_norm(one) and one.training]
        where = training[0] if training else ""
        named = f": {where} ({type(self.model.get_submodule(where)).__name__}) is in train mode" if where else ""
        text = f"The answer to a sample depends on the other samples of its batch{named}"
        return [leak_finding("bad", where, text, value, limit, self.n)]

    def _alone(self) -> float:
        """Return how much the first answers change when their samples come without the others."""
        assert self.scores is not None
        for size in (1, 2):
            if size >= self.n:
                break
            try:
                with torch.no_grad():
                    alone = outputs_of(call(self.model, part(self.inputs, slice(size))))
            except (RuntimeError, ValueError):  # batch normalization in train mode refuses a single sample
                continue
            if alone is not None and alone.shape[1:] == self.scores.shape[1:] and len(alone) == size:
                return difference_of([alone], [self.scores[:size]])
        return 0.0

    def _foreign_gradient(self) -> float:
        """Return the gradient of the first answer at other samples, as a share of its gradient at its own sample."""
        inputs = part(self.inputs, slice(_PROBED))
        images = main_input(inputs)
        if not images.is_floating_point() or len(images) < 2:
            return 0.0
        try:
            with torch.enable_grad():
                leaf = images.detach().clone().requires_grad_()
                scores = outputs_of(call(self.model, _with_images(inputs, images, leaf)))
                if scores is None or not scores.requires_grad:
                    return 0.0
                own = scores[0].flatten()
                weights = torch.linspace(1, 2, len(own), device=own.device, dtype=own.dtype)
                [gradient] = torch.autograd.grad((own * weights).sum(), leaf, allow_unused=True)
        except RuntimeError as error:  # parts without a derivative, such as recurrent kernels in eval mode
            raise_interruption(error)
            return 0.0
        if gradient is None or not bool(gradient.isfinite().all()):
            return 0.0
        at_own = float(gradient[0].abs().amax())
        return float(gradient[1:].abs().amax()) / at_own if at_own > 0 else 0.0


def random_finding(level: Level, difference: float, n: int, text: str) -> Finding:
    """Return the finding of answers that differ from pass to pass."""
    return Finding(
        level,
        "random-eval",
        "",
        text[0].upper() + text[1:],
        difference,
        ROUNDING,
        n,
        "Call model.eval() before evaluation; if it was called, use nn.Dropout or pass training=self.training to "
        "functional.dropout",
        "definition: two passes over one batch agree",
    )


def leak_finding(level: Level, layer: str, text: str, value: float, limit: float, n: int) -> Finding:
    """Return the finding of answers that depend on other samples."""
    return Finding(
        level,
        "batch-leak",
        layer,
        text,
        value,
        limit,
        n,
        "Call model.eval() after all .train() calls; if a module computes over the batch axis (axis 0) by itself, that "
        "is a bug in its reshape or normalization",
        "definition: a sample alone gets the answer that it gets in a batch",
    )


def floating_leaves(output: Any) -> list[Tensor]:
    """Return all floating tensors of an output."""
    leaves = tree_leaves(dict(output) if hasattr(output, "keys") else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def difference_of(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the largest difference, as a share of the largest value."""
    if [leaf.shape for leaf in a] != [leaf.shape for leaf in b]:
        return 1.0
    most = 0.0
    for one, other in zip(a, b, strict=True):
        if one.numel():
            scale = float(one.abs().amax())
            change = float((one.double() - other.double()).abs().amax())
            most = max(most, change / scale if scale > 0 else float(change > 0))
    return most


def _with_images(inputs: Any, images: Tensor, leaf: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return leaf
    if isinstance(inputs, dict):
        return {key: leaf if value is images else value for key, value in inputs.items()}
    return tuple(leaf if value is images else value for value in inputs)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes over the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
