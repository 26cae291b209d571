"""Rules that turn the gradients at the outputs of one operation into gradients at its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from gradcam_kit.capture.balance.constants import Action
from gradcam_kit.capture.balance.graph import kind

Gradients = tuple[Tensor | None, ...]
Rule = Callable[[Gradients, Gradients], Gradients | None]
"""A function from the gradients at a node's inputs and outputs to new gradients at its inputs; None = unchanged."""


def rule_of(node: Any, action: Action) -> Rule:
    """Return the hook of a node. Saved tensors are read now, because checkpointing forbids this in a backward pass."""
    if action.kind == "own":
        return OWN_RULES[kind(node)](node)
    if action.kind == "halves":
        return _scaled_inputs(action.places, 0.5)
    return _scaled_inputs(action.places if action.kind == "without" else None, 0.0)


def _scaled_inputs(places: tuple[int, ...] | None, share: float) -> Rule:
    """Return a rule that scales the gradients of the inputs at `places`, or of all inputs for None."""

    def rule(inputs: Gradients, outputs: Gradients) -> Gradients:
        return tuple(
            one if one is None or (places is not None and place not in places) else _share(one, share)
            for place, one in enumerate(inputs)
        )

    return rule


def _share(gradient: Tensor, share: float) -> Tensor:
    return (
        torch.zeros_like(gradient) if share == 0 else gradient * share
    )  # zeros_like gives zeros even if the gradient is infinite


def _gated(factor: Callable[[], Tensor]) -> Rule:
    """Return the rule of a function `x s(x)`, which multiplies gradients by the gate s(x) when it runs."""

    def rule(inputs: Gradients, outputs: Gradients) -> Gradients | None:
        if inputs[0] is None or outputs[0] is None:
            return None
        return (outputs[0] * factor()).to(inputs[0].dtype), *inputs[1:]

    return rule


def _gelu(node: Any) -> Rule:
    x = node._saved_self
    if node._saved_approximate == "tanh":
        return _gated(lambda: (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
    wide = x.dtype in (torch.float32, torch.float64)
    return _gated(lambda: torch.special.ndtr(x if wide else x.float()))


def _silu(node: Any) -> Rule:
    x = node._saved_self
    return _gated(lambda: torch.sigmoid(x))


def _hardswish(node: Any) -> Rule:
    x = node._saved_self
    return _gated(lambda: F.hardsigmoid(x))


def _mish(node: Any) -> Rule:
    x = node._saved_self
    return _gated(lambda: torch.tanh(F.softplus(x)))


def _elu(node: Any) -> Rule:
    """Return the rule of ELU, CELU and SELU. In-place calls save only the result, from which the input is computed."""
    scale = getattr(node, "_saved_scale", 1.0)  # CELU has neither scale nor input scale
    low, steepness = node._saved_alpha * scale, getattr(node, "_saved_input_scale", 1 / node._saved_alpha)
    has_input = hasattr(node, "_saved_self")
    saved = node._saved_self if has_input else node._saved_result

    def factor() -> Tensor:
        negative = saved.clamp(max=0)
        if has_input:
            value = low * torch.expm1(steepness * negative)
        else:
            value, negative = negative, torch.log1p(_above_minus_one(negative / low)) / steepness
        below = torch.where(negative < 0, value / negative, low * steepness)
        return torch.where(saved > 0, scale, below)

    return _gated(factor)


def _tanh(node: Any) -> Rule:
    """Return the rule of tanh. The input is computed from the result, and is kept finite if the result is saturated."""
    y = node._saved_result

    def factor() -> Tensor:
        x = torch.atanh(-_above_minus_one(-_above_minus_one(y)))
        return torch.where(y == 0, torch.ones_like(y), y / x)

    return _gated(factor)


def _above_minus_one(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(values.dtype).eps / 2 - 1)


def _glu(node: Any) -> Rule:
    x, axis = node._saved_self, _signed(node._saved_dim)

    def rule(inputs: Gradients, outputs: Gradients) -> Gradients | None:
        if inputs[0] is None or outputs[0] is None:
            return None
        value = outputs[0] * torch.sigmoid(x.chunk(2, axis)[1])
        return (torch.cat([value, torch.zeros_like(value)], axis),)

    return rule


def _pow(node: Any) -> Rule:
    """Return the rule of `x^p`, homogeneous of degree p: the gradient divided by p, or zero unless p > 0."""
    exponent = node._saved_exponent

    def rule(inputs: Gradients, outputs: Gradients) -> Gradients | None:
        if inputs[0] is None:
            return None
        if not isinstance(exponent, Tensor):
            return inputs[0] / exponent if exponent > 0 else torch.zeros_like(inputs[0]), *inputs[1:]
        return (inputs[0] / exponent).where(exponent > 0, 0), *inputs[1:]

    return rule


def _std_mean(node: Any) -> Rule:
    """Return the rule of `std_mean`: the standard deviation is a constant denominator, and the mean is linear."""
    shape, keeps = node._saved_self.shape, node._saved_keepdim
    axes = sorted(_signed(axis) % len(shape) for axis in node._saved_dim or range(len(shape)))
    count = math.prod(shape[axis] for axis in axes)

    def rule(inputs: Gradients, outputs: Gradients) -> Gradients | None:
        if inputs[0] is None:
            return None
        mean = outputs[1]
        if mean is None:
            return (torch.zeros_like(inputs[0]),)
        for axis in axes if not keeps else ():
            mean = mean.unsqueeze(axis)
        return ((mean / count).expand(shape).to(inputs[0].dtype),)

    return rule


def _normalized(scale: Tensor | None, deviation: Tensor, mean: Callable[[Tensor], Tensor] | None) -> Rule:
    """Return the rule `rho (gamma g - mean(gamma g))` for gradients g, scale gamma, and deviation 1 / rho."""

    def rule(inputs: Gradients, outputs: Gradients) -> Gradients | None:
        if inputs[0] is None or outputs[0] is None:
            return None
        weighted = outputs[0].to(deviation.dtype)
        if scale is not None:
            weighted = weighted * scale
        if mean is not None:
            weighted = weighted - mean(weighted)
        return (weighted * deviation).to(inputs[0].dtype), *inputs[1:]

    return rule


def _layer_norm(node: Any) -> Rule:
    axes = tuple(range(-len(node._saved_normalized_shape), 0))
    return _normalized(node._saved_weight, node._saved_result2, lambda g: g.mean(axes, keepdim=True))


def _rms_norm(node: Any) -> Rule:
    return _normalized(node._saved_weight, node._saved_result1, None)


def _group_norm(node: Any) -> Rule:
    n, groups = int(node._saved_N), int(node._saved_group)
    shape = node._saved_input.shape
    ones = (1,) * (len(shape) - 2)
    scale = node._saved_weight
    deviation = node._saved_result2.view(n, groups, 1).expand(-1, -1, shape[1] // groups).reshape(n, shape[1], *ones)

    def mean(gradient: Tensor) -> Tensor:
        means = gradient.reshape(n, groups, -1).mean(2, keepdim=True)
        return means.expand(-1, -1, shape[1] // groups).reshape(n, shape[1], *ones)

    return _normalized(None if scale is None else scale.view(1, -1, *ones), deviation, mean)


def _batch_norm(node: Any) -> Rule:
    """Return the rule of batch norm with batch statistics; instance norm runs the same operation."""
    axes = (0, *range(2, node._saved_input.ndim))
    shape = (1, -1, *(1 for _ in axes[1:]))
    scale = node._saved_weight
    return _normalized(
        None if scale is None else scale.view(shape),
        node._saved_result2.view(shape),
        lambda g: g.mean(axes, keepdim=True),
    )


def _signed(axis: int) -> int:
    """Return an axis as the user gave it, because torch exposes -1 as an unsigned 64-bit number."""
    return axis - 2**64 if axis >= 2**63 else axis


OWN_RULES: dict[str, Callable[[Any], Rule]] = {
    "Gelu": _gelu,
    "Silu": _silu,
    "Hardswish": _hardswish,
    "Mish": _mish,
    "Elu": _elu,
    "Celu": _elu,
    "Tanh": _tanh,
    "Glu": _glu,
    "Pow": _pow,
    "StdMean": _std_mean,
    "NativeLayerNorm": _layer_norm,
    "FusedRmsNorm": _rms_norm,
    "NativeGroupNorm": _group_norm,
    "NativeBatchNorm": _batch_norm,
    "CudnnBatchNorm": _batch_norm,
}
"""Maps each operation with its own rule to the function that makes this rule for a node."""
