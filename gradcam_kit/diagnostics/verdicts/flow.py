"""Verdicts on changes of signals and gradients over depth and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import numpy as np

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import LayerTrack
from gradcam_kit.diagnostics.verdicts.finiteness import gradient_finiteness, value_finiteness

_FEWEST_LAYERS = 4
_FEWEST_WINDOWS = 3


def flow_findings(ledger: Ledger, limits: Thresholds, blocked: bool = False) -> list[Finding]:
    """Return the findings on finiteness, gradients over depth and time, and the scale of activations.

    Args:
        ledger: the observations.
        limits: limits of the verdicts.
        blocked: whether some layer is dead or constant, which explains gradients that vanish before it.
    """
    tracks = sorted(ledger.tracks.values(), key=lambda track: track.order)
    nonfinite = value_finiteness(tracks)
    bad_gradients = [] if nonfinite else gradient_finiteness(tracks, ledger, limits)
    depth = [] if blocked else _gradients_over_depth(tracks, limits)
    found = [*nonfinite, *bad_gradients, *depth, *_spike(ledger, limits, bool(nonfinite or bad_gradients))]
    return found + _half_precision(tracks, limits) + ([] if depth or blocked else _signal_over_depth(tracks, limits))


def _fit(values: list[float]) -> float:
    """Return the factor from the first to the last of positive values, by a line fitted to their logarithms."""
    logarithms = np.log(np.asarray(values, dtype=np.float64))
    slope = np.polyfit(np.arange(len(values)), logarithms, 1)[0]
    return float(math.exp(min(slope * (len(values) - 1), 700)))


@dataclass(frozen=True)
class Change:
    """The change of a quantity from the first to the last of some layers.

    Attributes:
        factor: the value at the last layer divided by the value at the first, from a line fitted to the logarithms.
        chosen: the layers to which the line was fitted.
        sure: whether all these layers lie on every path through the model.
    """

    factor: float
    chosen: list[LayerTrack]
    sure: bool = True

    @property
    def size(self) -> float:
        """The factor or its inverse, whichever is larger."""
        return max(self.factor, 1 / max(self.factor, 1e-300))


def gradient_change(tracks: list[LayerTrack], limits: Thresholds) -> Change | None:
    """Return how the norm of the gradient changes in the order of execution; None if there are too few layers."""
    norms = {track.name: track.last_window(limits.dead_samples).gradient_norm for track in tracks}
    usable = [track for track in tracks if norms[track.name] > 0]
    chosen = [track for track in usable if track.on_path]
    sure = len(chosen) >= _FEWEST_LAYERS
    if not sure:
        chosen = usable
    if len(chosen) < _FEWEST_LAYERS:
        return None
    return Change(_fit([norms[track.name] for track in chosen]), chosen, sure)


def signal_change(tracks: list[LayerTrack]) -> Change | None:
    """Return how the standard deviation of activations changes in the order of execution; None with too few layers."""
    chosen = [
        track
        for track in tracks
        if track.on_path and track.mixes and not track.is_output and track.open_or_closed_std > 0
    ]
    if len(chosen) < _FEWEST_LAYERS:
        return None
    return Change(_fit([track.open_or_closed_std for track in chosen]), chosen)


def _gradients_over_depth(tracks: list[LayerTrack], limits: Thresholds) -> list[Finding]:
    found = gradient_change(tracks, limits)
    if found is None or found.size < limits.gradient_warn:
        return []
    factor, chosen, change, sure = found.factor, found.chosen, found.size, found.sure
    norms = {track.name: track.last_window(limits.dead_samples).gradient_norm for track in chosen}
    is_bad = change >= limits.gradient_bad and sure
    first, last = chosen[0], chosen[-1]
    vanishes = factor > 1
    return [
        Finding(
            "bad" if is_bad else "warn",
            "vanishing" if vanishes else "exploding",
            first.layer,
            f"the gradient norm {'falls' if vanishes else 'grows'} by a factor of {change:.1e} from {last.layer!r} "
            f"({norms[last.name]:.1e}) back to {first.layer!r} ({norms[first.name]:.1e}), over {len(chosen)} layers",
            change,
            limits.gradient_bad if is_bad else limits.gradient_warn,
            None,
            advice.VANISHING if vanishes else advice.EXPLODING,
            "convention: the change is less than a factor of 10 in healthy models",
        )
    ]


def spike(window_norms: list[float]) -> float:
    """Return the last norm as a multiple of the median of up to ten previous windows; 0 if too few norms are known."""
    *before, last = window_norms or [0.0]
    finite = [norm for norm in before[-10:] if math.isfinite(norm)]
    if len(finite) < _FEWEST_WINDOWS or not math.isfinite(last):
        return 0.0
    return last / max(median(finite), 1e-300)


def _spike(ledger: Ledger, limits: Thresholds, nonfinite: bool) -> list[Finding]:
    factor = spike(ledger.window_norms)
    if factor <= limits.spike:
        return []
    windows = min(len(ledger.window_norms) - 1, 10)
    said = f"the gradient norm rose to {factor:.1f} times the median of the previous {windows} windows"
    level = "bad" if nonfinite else "warn"
    return [Finding(level, "exploding", "", said, factor, limits.spike, None, advice.SPIKE, "convention")]  # type: ignore[arg-type]


def _half_precision(tracks: list[LayerTrack], limits: Thresholds) -> list[Finding]:
    for track in tracks:
        moments = track.last_window(limits.dead_samples).moments
        largest = max(abs(moments.minimum), abs(moments.maximum)) if moments.finite else 0.0
        if track.is_half and math.isfinite(largest) and largest > limits.scale:
            said = f"float16 values reach {largest:.3g}"
            return [
                Finding(
                    "warn", "exploding", track.layer, said, largest, limits.scale, moments.n, advice.OVERFLOW,
                    "largest float16: 65,504",
                )
            ]  # fmt: skip
    return []


def _signal_over_depth(tracks: list[LayerTrack], limits: Thresholds) -> list[Finding]:
    found = signal_change(tracks)
    if found is None or found.size < limits.depth:
        return []
    factor, change, chosen = found.factor, found.size, found.chosen
    kind = "exploding" if factor > 1 else "vanishing"
    said = (
        f"the standard deviation of activations {'grows' if factor > 1 else 'falls'} by a factor of {change:.3g} from "
        f"{chosen[0].layer!r} to {chosen[-1].layer!r}"
    )
    return [Finding("warn", kind, chosen[-1].layer, said, change, limits.depth, None, advice.DEPTH, "convention")]
