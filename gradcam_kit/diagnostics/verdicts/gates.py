"""Verdicts on gates of recurrent layers that are stuck, and on saturated gates and states."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.maths.gates import DirectionTrace
from gradcam_kit.diagnostics.thresholds import Thresholds

_SIGMOID_GATES = ("input", "forget", "output", "reset", "update")
_SIGMOID_FLAT = (0.0127, 0.9873)  # outside this range, the slope of sigmoid is below 5 % of its maximum
_TANH_FLAT = 0.9747  # above this magnitude, the slope of tanh is below 5 % of its maximum
_FEWEST = 8  # minimum number of values of a unit for a verdict


def gate_findings(
    name: str,
    where: str,
    trace: DirectionTrace,
    active: Bool[Tensor, "n t"],
    squashed: Tensor | None,
    limits: Thresholds,
) -> list[Finding]:
    """Return the findings about one layer in one direction.

    Args:
        name: dotted name of the module.
        where: description of the layer and direction.
        trace: gates and states of the layer.
        active: mask of the time steps that are not padding.
        squashed: states that tanh limits to [-1, 1], `(n, t, h)`; None for layers without a tanh.
        limits: limits of the verdicts.
    """
    found: list[Finding] = []
    n, values = len(active), int(active.sum())
    if values < _FEWEST:
        return found
    for gate in (gate for gate in _SIGMOID_GATES if gate in trace.gates):
        own = trace.gates[gate][active].double()
        mean, std = own.mean(0), own.std(0, correction=0)
        outside = (mean < limits.stuck_margin) | (mean > 1 - limits.stuck_margin)
        stuck = outside & (std < limits.stuck_std)
        share = float(stuck.double().mean())
        flat = float(((own < _SIGMOID_FLAT[0]) | (own > _SIGMOID_FLAT[1])).double().mean())
        if share > 0:
            high = int((mean[stuck] > 0.5).sum())
            count = int(stuck.sum())
            ends = "1" if high == count else "0" if high == 0 else "0 or 1"
            found.append(
                Finding(
                    "warn" if share >= limits.stuck_warn else "note", "stuck-gate", name,
                    f"The {gate} gate of {count} of {len(stuck)} units{where} stays at {ends}",
                    share, limits.stuck_warn, n, advice.STUCK_GATE,
                    f"mean outside [{limits.stuck_margin:g}, {1 - limits.stuck_margin:g}] and standard deviation below "
                    f"{limits.stuck_std:g}; a convention",
                )
            )  # fmt: skip
        if share < limits.stuck_warn and flat >= limits.saturated_warn:
            found.append(
                Finding(
                    "warn", "stuck-gate", name,
                    f"The {gate} gate{where} is saturated: {flat:.0%} of its values are near 0 or 1",
                    flat, limits.saturated_warn, n, advice.SATURATED_GATE,
                    "slope below 5 % of its maximum; illustrated in Glorot & Bengio 2010",
                )
            )  # fmt: skip
    if squashed is not None:
        flat = float((squashed[active].abs() > _TANH_FLAT).double().mean())
        if flat >= limits.saturated_warn:
            found.append(
                Finding(
                    "bad" if flat >= limits.saturated_bad else "warn", "saturated", name,
                    f"{flat:.0%} of the states{where} are near -1 or 1, where tanh is flat",
                    flat, limits.saturated_warn, n, advice.SATURATED,
                    "slope below 5 % of its maximum; illustrated in Glorot & Bengio 2010",
                )
            )  # fmt: skip
    return found
