"""Score the importance of units from one forward and at most one backward pass per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gradcam_kit.capture import Call, Observation, Observer, check_observable, observe, unobservable
from gradcam_kit.diagnostics.checks.batches import call, moved, samples
from gradcam_kit.diagnostics.checks.preserving import device_of
from gradcam_kit.diagnostics.compare.losses import Loss, SampleLosses
from gradcam_kit.diagnostics.compare.reading import evaluated, forward_only
from gradcam_kit.diagnostics.maths.statistics import Axes, at_least_float32, pool
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.units import sample_axis
from gradcam_kit.errors import InputError

Totals = dict[str, Float[Tensor, " _"]]
"""Layer -> the importance of its units, summed over samples, as float64 on the host."""


def score_units(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    axes: Mapping[str, int | None],
    batches: Iterable[tuple[Any, Any]],
    loss: Loss | None,
    method: str,
) -> tuple[Totals, int, tuple[str, ...]]:
    """Sum the importance of units over the samples of all batches; also return the number of samples, and notes.

    Raises:
        InputError: neither inputs nor parameters have gradients.
    """
    inner = check_observable(model)
    device, scores, n = device_of(inner), _UnitScores(axes, method), 0
    with evaluated(inner), observe(model, layers, scores) as observation, _without_cudnn(inner):
        scores.observation = observation
        for inputs, labels in batches:
            scores.n = samples(inputs)
            n += scores.n
            inputs, labels = _usable(moved(inputs, device)), _usable(moved(labels, device))
            if method == "activation":
                with forward_only(inner):
                    call(model, inputs)
            else:
                with torch.enable_grad():
                    _differentiate(model, inputs, SampleLosses(labels, scores.n, loss))
            scores.finish()
        notes = tuple(observation.notes)
    return {name: total.cpu() for name, total in scores.totals.items()}, n, notes


def _usable(tree: Any) -> Any:
    """Replace inference tensors with clones, because inference tensors cannot be part of an autograd graph."""
    plain = dict(tree) if isinstance(tree, Mapping) else tree
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, plain)


def _differentiate(model: nn.Module, inputs: Any, losses: SampleLosses) -> None:
    """Backpropagate the sum of the losses without storing gradients in the parameters."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    given = tree_map(leaf, inputs)
    # Integer inputs, such as token ids, have no gradient, so the backward pass goes to the parameters instead.
    wanted = leaves or [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = losses(call(model, given)).sum()
    if not wanted or not total.requires_grad:
        raise InputError(
            "the loss has no gradient: the model has neither floating-point inputs nor trainable parameters, or it "
            "detaches its output; use method='ablation', or unfreeze a parameter before the layers"
        )
    torch.autograd.grad(total, wanted, allow_unused=True)


def _without_cudnn(model: nn.Module) -> Any:
    """Return a context manager that disables cuDNN for recurrent layers, which it cannot run backward in eval mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    on_device = any(parameter.is_cuda for parameter in model.parameters())
    return torch.backends.cudnn.flags(enabled=False) if recurrent and on_device else nullcontext()


class _UnitScores(Observer):
    """Sums over samples of each unit's mean |a|, mean |g|, or |sum of a * g|, taken over the unit's positions.

    Here a are the activations and g the gradients.
    """

    def __init__(self, axes: Mapping[str, int | None], method: str) -> None:
        self.axes, self.method, self.n = axes, method, 0
        self.observation: Observation | None = None
        self.totals: Totals = {}
        self.products: dict[str, Float[Tensor, "n k"]] = {}

    def finish(self) -> None:
        """Add the absolute value of each sample's sum of a * g, which is complete after the backward pass."""
        for name, product in self.products.items():
            self._add(name, product.abs())
        self.products.clear()

    def leave(self, call: Call) -> None:
        leaves = [(name, one) for name, one in named_leaves(call.name, call.output) if unobservable(one) is None]
        if call.recomputed or not leaves or call.name not in self.axes:
            return
        leaf = leaves[0][1]
        axes = Axes.of(leaf.shape, self.axes[call.name], sample_axis(call.module, leaves[0][0]))
        positions = leaf.numel() // max(axes.n * axes.units, 1)
        if self.method == "activation":
            self._add(call.name, pool(at_least_float32(leaf.detach()).abs(), axes) / positions)
        elif leaf.requires_grad and self.observation is not None:
            # A copy, because an in-place ReLU may follow.
            values = leaf.detach().clone() if self.method == "taylor" else None
            hook = self._arriving(call.name, axes, values, positions)
            self.observation.attach.on_gradient(leaf, hook)

    def _arriving(self, name: str, axes: Axes, values: Tensor | None, positions: int) -> Any:
        def arrive(gradient: Tensor) -> None:
            wide = at_least_float32(gradient.detach())
            if values is None:
                self._add(name, pool(wide.abs(), axes) / positions)
                return
            product = pool(wide * at_least_float32(values), axes)
            self.products[name] = self.products[name] + product if name in self.products else product

        return arrive

    def _add(self, name: str, by_sample: Float[Tensor, "n k"]) -> None:
        total = by_sample.sum(0, dtype=torch.float64)
        self.totals[name] = self.totals[name] + total if name in self.totals else total
