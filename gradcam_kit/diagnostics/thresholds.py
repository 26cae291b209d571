"""The limits of the verdicts, all of them configurable."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gradcam_kit.options import non_negative


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Limits of the verdicts of `ModelDiagnostics`, `trace_recurrent`, `capture_attention` and `graph_attention`.

    Limits without a source are conventions.

    Attributes:
        dead_warn: share of a layer's units that are never active, for a warning.
        dead_bad: the same, for a bad finding.
        dead_samples: with fewer samples, dead units are never more than a note (rule of three: Hanley &
            Lippman-Hand, JAMA 1983); with fewer sampled values, saturation is not judged.
        saturated_warn: share of the values where the slope is below 5 % of its maximum, for a warning (Glorot & Bengio,
            AISTATS 2010).
        saturated_bad: the same, for a bad finding.
        constant: share of a layer's units with the same value for all inputs, from which the layer is constant.
        rank: effective rank below which features have collapsed.
        between: share of the mean square that is variance between samples, below which features have collapsed.
        collapsed_samples: with fewer samples, collapse and redundancy are not judged.
        correlation: absolute correlation above which two units repeat each other.
        redundant: share of a layer's units that repeat another unit, from which the layer is redundant.
        gradient_warn: factor by which the norm of the gradient changes over the depth of the model, for a warning.
        gradient_bad: the same, for a bad finding.
        spike: ratio of the gradient norm to the median of the previous windows, above which training is unstable.
        scale: largest safe activation in float16, whose largest number is 65,504.
        depth: factor by which the standard deviation of activations changes over the depth of the model, for a warning.
        update_low: relative update of a parameter below which it hardly learns (aim: 1e-3, CS231n notes).
        update_high: relative update of a parameter above which training is unstable.
        accumulated: correlation of the gradient norm with the step number, above which gradients accumulate.
        accumulated_steps: minimum number of measured steps for this correlation.
        head_distance: Jensen-Shannon distance of two attention heads below which they repeat each other.
        uniform: entropy (0 = one key, 1 = all keys equally) above which a head counts as uniform.
        sink: share of attention that a head gives to one token, to all separator tokens together, or to one neighbor in
            a graph, above which this is a sink (Clark et al., BlackboxNLP 2019; Xiao et al., ICLR 2024).
        stuck_margin: distance of the mean of a gate from 0 or 1, below which the gate may be stuck.
        stuck_std: standard deviation over samples and steps below which this gate is stuck.
        stuck_warn: share of a layer's units with a stuck gate, for a warning.

    Raises:
        OptionError: a limit that is negative or not finite.
    """

    dead_warn: float = 0.1
    dead_bad: float = 0.5
    dead_samples: int = 100
    saturated_warn: float = 0.5
    saturated_bad: float = 0.9
    constant: float = 0.99
    rank: float = 2.0
    between: float = 1e-4
    collapsed_samples: int = 64
    correlation: float = 0.95
    redundant: float = 0.5
    gradient_warn: float = 1e3
    gradient_bad: float = 1e6
    spike: float = 10.0
    scale: float = 1e4
    depth: float = 100.0
    update_low: float = 1e-5
    update_high: float = 1e-1
    accumulated: float = 0.99
    accumulated_steps: int = 4
    head_distance: float = 0.05
    uniform: float = 0.99
    sink: float = 0.9
    stuck_margin: float = 0.05
    stuck_std: float = 0.02
    stuck_warn: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            non_negative(field.name, getattr(self, field.name))
