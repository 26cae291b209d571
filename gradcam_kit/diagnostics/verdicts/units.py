"""Verdicts on dead, saturated and constant units in the last window."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding, Level
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.statistics import binomial_error
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import LayerTrack, WindowStats

_SAME = 1e-6
_FEWEST = 64
_FEWEST_ALIKE = 16  # minimum number of samples for reporting equal outputs
_RULE_OF_THREE = "rule of three: Hanley & Lippman-Hand 1983; share of units: convention"


def dead_units(track: LayerTrack, window: WindowStats) -> int | None:
    """Return the number of units that were never active; None if units cannot die, or if there was a NaN.

    After a ReLU module, a unit is dead if its largest value is 0. If the ReLU is a function call, the unit before it is
    dead if its largest value is at most 0 and neither its own weights nor its bias had a nonzero gradient in the
    window.
    """
    if window.high is None or window.moments.nan:
        return None
    if track.activation == "relu":
        return int((window.high <= 0).sum())
    if window.alive is not None and window.alive.shape == window.high.shape:
        return int(((window.high <= 0) & ~window.alive).sum())
    return None


def unit_findings(
    ledger: Ledger, limits: Thresholds, broken: Set[str] = frozenset()
) -> tuple[list[Finding], set[str], set[str]]:
    """Return the findings, the tracks with uninformative outputs, and the layers that get such outputs as input.

    Tracks in `broken` hold or follow the first NaN or infinity, so none of them is called dead or constant.
    """
    findings: list[Finding] = []
    silent: set[str] = set()
    starved: set[str] = set()
    tracks = sorted(ledger.tracks.values(), key=lambda track: track.order)
    for position, track in enumerate(tracks):
        window = track.last_window(limits.dead_samples)
        inherited = _inherits(track, tracks[:position], silent)
        if inherited:
            starved.add(track.layer)
        is_judged = track.name not in broken
        dead = _dead(track, window, tracks[position + 1 :], ledger, limits) if is_judged else None
        constant = _constant(track, window, limits) if is_judged else None
        if inherited and (dead is not None or constant is not None or track.producer in silent):
            silent.add(track.name)
        elif dead is not None:
            findings.append(dead)
            if dead.value is not None and dead.value >= limits.constant:
                silent.add(track.name)
        elif constant is not None:
            findings.append(constant)
            silent.add(track.name)
        saturated = _saturated(track, window, limits)
        if saturated is not None:
            findings.append(saturated)
    return findings, silent, starved


def _inherits(track: LayerTrack, before: list[LayerTrack], silent: set[str]) -> bool:
    """Whether the layer that produced the input, or else the layer that ran before, has an uninformative output."""
    source = track.producer or (before[-1].name if before else None)
    return source in silent


def _dead(
    track: LayerTrack, window: WindowStats, behind: Iterable[LayerTrack], ledger: Ledger, limits: Thresholds
) -> Finding | None:
    dead, n = dead_units(track, window), window.moments.n
    if not dead or not track.units:
        return None
    if track.activation is None:
        # A ReLU module that follows before the next layer with weights is judged instead.
        following = next((own for own in behind if own.activation == "relu" or own.owns_weight), None)
        if following is not None and following.activation == "relu":
            return None
    share = dead / track.units
    if share < limits.dead_warn:
        return None
    chance = 1 - 0.05 ** (1 / n)
    level: Level = "bad" if share >= limits.dead_bad else "warn"
    first = " at initialization" if track.windows == 0 and ledger.optimizer_steps <= 1 and ledger.has_optimizer else ""
    return Finding(
        "note" if n < limits.dead_samples else level,
        "dead",
        track.layer,
        f"{dead} of {track.units} units were never active{first}; the chance that another sample activates "
        f"one is at most {chance:.1%} (95 % confidence)",
        share,
        limits.dead_bad if share >= limits.dead_bad else limits.dead_warn,
        n,
        advice.DEAD,
        _RULE_OF_THREE,
    )


def saturated_share(window: WindowStats, limits: Thresholds) -> float | None:
    """Return the share of values with a small slope; None if there are too few, or the layer cannot saturate."""
    return None if window.sampled < limits.dead_samples else window.saturated / window.sampled


def constant_share(track: LayerTrack, window: WindowStats) -> float | None:
    """Return the share of units whose output is the same for all samples; None with few samples or batches of one."""
    if window.low is None or window.high is None or track.batch < 2 or window.moments.n < _FEWEST_ALIKE:
        return None
    largest = np.maximum(np.abs(window.high), np.abs(window.low))
    return float((window.high - window.low <= _SAME * largest).mean())


def _saturated(track: LayerTrack, window: WindowStats, limits: Thresholds) -> Finding | None:
    share = saturated_share(window, limits)
    if share is None or share < limits.saturated_warn:
        return None
    error = binomial_error(share, window.sampled)
    # A model's output may saturate on purpose, so its saturation is at most a warning.
    is_bad = share >= limits.saturated_bad and not track.is_output
    return Finding(
        "bad" if is_bad else "warn",
        "saturated",
        track.layer,
        f"{share:.0%} of the values of {track.kind} (+-{error:.1%}, from a sample of {window.sampled:,}) lie where its "
        "slope is below 5 % of its maximum",
        share,
        limits.saturated_bad if is_bad else limits.saturated_warn,
        window.moments.n,
        advice.SATURATED,
        "Glorot & Bengio 2010; shares: convention",
    )


def _constant(track: LayerTrack, window: WindowStats, limits: Thresholds) -> Finding | None:
    n, share = window.moments.n, constant_share(track, window)
    if share is None or share < limits.constant:
        return None
    level: Level = "note" if track.zero_weight else "bad" if n >= _FEWEST else "warn"
    return Finding(
        level,
        "constant",
        track.layer,
        f"{round(share * track.units)} of {track.units} units return the same value for every input",
        share,
        limits.constant,
        n,
        advice.ZERO_WEIGHT if track.zero_weight else advice.CONSTANT,
        "convention",
    )
