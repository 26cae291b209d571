"""Measure the memory of a recurrent layer by its gates, and by the gradients of its last state at the inputs."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gradcam_kit.diagnostics.maths.gates import recurrent_trace

_REMEMBERS = ("forget", "update")
"""Gates that multiply the old state: of an LSTM, and of a GRU as torch defines it."""


def gate_memory(gates: dict[str, Tensor], active: Bool[Tensor, "n t"]) -> Float[Tensor, " h"] | None:
    r"""Return the time constant of each unit in steps, $1 / (1 - \bar f)$; None for a plain RNN.

    A state that is multiplied by f in each step falls to 1/e after about this many steps. f is the forget gate of an
    LSTM or the update gate of a GRU, which keeps the old state where it is 1, and $\bar f$ is its mean over samples and
    steps.
    """
    for name in _REMEMBERS:
        if name in gates:
            own = gates[name].double()
            mean = (own * active[..., None]).sum((0, 1)) / active.sum().clamp(min=1)
            return 1 / (1 - mean)
    return None


def gradient_memory(
    module: nn.Module,
    inputs: Tensor | PackedSequence,
    state: Tensor | tuple[Tensor, Tensor] | None,
    layer: int,
    reverse: bool,
    probes: int,
    seed: int,
) -> Float[Tensor, "n t"]:
    r"""Return the Frobenius norm of $\partial h_T / \partial x_t$ for each step of the input.

    With at least as many probes as units, the norm is exact. With fewer probes, it is estimated along random orthogonal
    directions; the expectation of its square is exact. h_T is the last state of the direction, which in reverse is at
    the first step.

    Args:
        module: an LSTM, GRU or RNN.
        inputs: the inputs of the module, in any form that it accepts.
        state: the initial state; None = zeros.
        layer: the layer whose last state is differentiated.
        reverse: use the reverse direction.
        probes: maximum number of backward passes; one per unit suffices.
        seed: seed of the directions.
    """
    data = (inputs.data if isinstance(inputs, PackedSequence) else inputs).detach().clone()
    with torch.enable_grad():
        leaf = data.requires_grad_()
        given = PackedSequence(leaf, *inputs[1:]) if isinstance(inputs, PackedSequence) else leaf
        hidden = recurrent_trace(module, given, state).directions[layer][int(reverse)].hidden
        last = hidden[:, 0] if reverse else hidden[:, -1]
        units = last.shape[1]
        count = min(probes, units)
        total: Tensor | None = None
        for probe in _directions(units, count, seed).to(last).unbind(1):
            (gradient,) = torch.autograd.grad((last * probe).sum(), leaf, retain_graph=True)
            square = _batch_first(module, gradient, inputs).double().square().sum(-1)
            total = square if total is None else total + square
    assert total is not None
    return (total * (units / count)).sqrt()


def half_life(norms: Float[Tensor, "n t"], active: Bool[Tensor, "n t"], reverse: bool) -> Float[Tensor, " n"]:
    """Return how many steps before the last step the gradient has halved.

    Between two steps, the logarithm of the gradient is interpolated linearly. The result is infinite if the gradient
    does not halve within the sequence, and NaN if the last step has no gradient.
    """
    found = []
    for own, counts in zip(norms, active, strict=True):
        values = own[counts].tolist()
        found.append(_half_life(values if reverse else values[::-1]))
    return torch.tensor(found, dtype=torch.float64)


def _half_life(values: list[float]) -> float:
    """Return the half-life of `values`, ordered by their distance from the last step."""
    if not values or not values[0] > 0:
        return math.nan
    half = values[0] / 2
    for lag in range(1, len(values)):
        if values[lag] <= half:
            before, after = values[lag - 1], values[lag]
            if after == 0:
                return float(lag)
            return lag - 1 + math.log(before / half) / math.log(before / after)
    return math.inf


def _directions(units: int, count: int, seed: int) -> Float[Tensor, "units count"]:
    """Return orthonormal directions; the axes themselves if there are as many directions as units."""
    if count == units:
        return torch.eye(units, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    directions: Tensor = torch.linalg.qr(torch.randn(units, count, dtype=torch.float64, generator=generator))[0]
    return directions


def _batch_first(module: nn.Module, gradient: Tensor, inputs: Tensor | PackedSequence) -> Tensor:
    if isinstance(inputs, PackedSequence):
        padded: Tensor = pad_packed_sequence(PackedSequence(gradient, *inputs[1:]), batch_first=True)[0]
        return padded
    if gradient.ndim == 2:
        return gradient[None]
    return gradient if getattr(module, "batch_first", False) else gradient.transpose(0, 1)
