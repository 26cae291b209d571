"""Verdicts on parameters that get no gradient, change too little or too much, or accumulate gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from statistics import median

import numpy as np

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import ParameterTrack

_GROWTH = 3.0
_RECENT = 8


def update_findings(ledger: Ledger, limits: Thresholds, dead: Iterable[str], starved: Iterable[str]) -> list[Finding]:
    """Return the findings about gradients and updates of parameters.

    Args:
        ledger: the observations.
        limits: limits of the verdicts.
        dead: layers with a dead or constant output, which explain missing gradients before them.
        starved: layers whose input is a dead or constant output, which explains gradients of 0 at their weights.
    """
    parameters = list(ledger.parameters.values())
    measured = [*_stuck(parameters), *_updates(parameters, limits), *_accumulated(ledger, limits)]
    if any(own.is_local for own in parameters):
        measured = [replace(finding, message=f"{finding.message} (local shards of one rank)") for finding in measured]
    return [
        *(_without_gradient(parameters, ledger, set(dead), set(starved)) or _layers_without_gradient(ledger)),
        *_outside_of_optimizer(parameters),
        *_frozen(parameters),
        *measured,
    ]


def grouped(names: Iterable[str], all_names: Iterable[str]) -> list[str]:
    """Return the largest modules whose parameters are all among the names, and the single parameters that remain."""
    chosen, all_names = list(names), list(all_names)
    members = set(chosen)
    found: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        prefixes = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        whole = (
            prefix for prefix in prefixes if all(own in members for own in all_names if own.startswith(f"{prefix}."))
        )
        found[next(whole, name)] = None
    return list(found)


def _without_gradient(
    parameters: list[ParameterTrack], ledger: Ledger, dead: set[str], starved: set[str]
) -> list[Finding]:
    trained = [own for own in parameters if own.trains and own.window[0]]
    missing = [own for own in trained if own.window[1] == own.window[0]]
    # A gradient of 0 is not a fault in a local shard, such as embeddings of words that did not occur.
    zero = [own for own in trained if own.window[2] == own.window[0] and not own.is_local]
    if not trained:
        return []
    all_names = [own.name for own in parameters if own.trains]
    if len(missing) == len(trained):
        said = "no parameter has a gradient when the optimizer steps"
        return [_no_gradient("", said, advice.DETACHED, trained[0].window[0], is_sure=True)]
    findings = []
    for group in grouped([own.name for own in missing], all_names):
        unused = any(group == name or group.startswith(f"{name}.") for name in ledger.never_ran) or any(
            name.startswith(f"{group}.") for name in ledger.never_ran
        )
        said = "its parameters have no gradient (None)"
        words = advice.UNUSED if unused else advice.DETACHED
        findings.append(_no_gradient(group, said, words, trained[0].window[0], is_sure=True))
    last_dead = max((track.order for track in ledger.tracks.values() if track.layer in dead), default=-1)
    orders = {track.layer: track.order for track in ledger.tracks.values()}
    unexplained = [
        own.name for own in zero if orders.get(own.module, last_dead + 1) > last_dead and own.module not in starved
    ]
    for group in grouped(unexplained, all_names):
        reached = any(
            track.gradient_norm.value > 0
            for track in ledger.tracks.values()
            if track.layer == group or track.layer.startswith(f"{group}.") or group.startswith(f"{track.layer}.")
        )
        steps = trained[0].window[0]
        finding = _no_gradient(
            group,
            "the gradient of its parameters is exactly 0",
            advice.OWN_ZERO if reached else advice.BEHIND_ZERO,
            steps,
            # A single step is not conclusive: in the first step, zero-initialized branches have gradients of 0.
            is_sure=steps > 1,
        )
        findings.append(finding)
    return findings


def _no_gradient(layer: str, said: str, words: str, steps: int, *, is_sure: bool) -> Finding:
    return Finding(
        "bad" if is_sure else "note", "no-gradient", layer, f"{said}, in {steps} of {steps} measured steps",
        0.0, 0.0, steps, words, "definition",
    )  # fmt: skip


def _layers_without_gradient(ledger: Ledger) -> list[Finding]:
    """Return findings about layers with weights whose output got no gradient; none if an optimizer is given."""
    if ledger.has_optimizer or not any(track.gradient_norm.seen for track in ledger.tracks.values()):
        return []
    reached = {track.layer for track in ledger.tracks.values() if track.gradient_norm.seen or track.open.bad_gradients}
    cut = {
        track.layer: None
        for track in ledger.tracks.values()
        if track.owns_weight and track.layer not in reached and (track.open.expected or track.closed)
        and (track.open.expected or (track.closed is not None and track.closed.expected))
    }  # fmt: skip
    return [
        _no_gradient(layer, "no gradient arrived at its output (None)", advice.DETACHED, ledger.steps, is_sure=True)
        for layer in cut
    ]


def _outside_of_optimizer(parameters: list[ParameterTrack]) -> list[Finding]:
    outside = [own.name for own in parameters if own.trains and own.optimized is False]
    all_names = [own.name for own in parameters if own.trains]
    return [
        Finding(
            "bad", "not-in-optimizer", group, "it requires gradients, but no optimizer holds its parameters",
            None, None, None, advice.NOT_IN_OPTIMIZER, "definition",
        )
        for group in grouped(outside, all_names)
    ]  # fmt: skip


def _frozen(parameters: list[ParameterTrack]) -> list[Finding]:
    findings = []
    all_names = [own.name for own in parameters]
    for held, level in ((True, "warn"), (False, "note")):
        frozen = [own.name for own in parameters if not own.trains and own.optimized is held]
        for group in grouped(frozen, all_names):
            said = "it does not require gradients" + (", although the optimizer holds it" if held else "")
            findings.append(
                Finding(level, "frozen", group, said, None, None, None, advice.NO_GRADIENT_WANTED, "definition")  # type: ignore[arg-type]
            )
    return findings


def _stuck(parameters: list[ParameterTrack]) -> list[Finding]:
    findings = []
    stuck = [
        own
        for own in parameters
        if own.trains and own.optimized and own.gradient_norm > 0 and _stands_still(own) and not own.is_lost
    ]
    trained = [own.name for own in parameters if own.trains]
    moving = [own for own in parameters if any(own.window[3])]
    for group in grouped([own.name for own in stuck], trained) if moving or len(stuck) < 2 else [""]:
        steps = len(stuck[0].window[3])
        findings.append(
            Finding(
                "bad" if steps > 1 else "warn", "frozen", group,
                f"{'it has a gradient' if group else 'the parameters have gradients'} but did not change "
                f"(measured steps: {steps})", 0.0, 0.0, steps,
                advice.FROZEN, "definition",
            )
        )  # fmt: skip
    return findings


def judged(parameters: Iterable[ParameterTrack]) -> list[ParameterTrack]:
    """Return the parameters whose relative updates are judged.

    Biases, and embeddings that are plain parameters (such as `pos_embed`), start near 0, so their first relative
    updates are not meaningful.
    """
    return [own for own in parameters if own.dims >= 2 and "weight" in own.name.rpartition(".")[2]]


def _updates(parameters: list[ParameterTrack], limits: Thresholds) -> list[Finding]:
    weights = judged(parameters)
    ratios = {own.name: median(own.window[3]) for own in weights if own.window[3]}
    lost = {own.name: own.reach / own.norm for own in weights if _stands_still(own) and own.is_lost}
    moving = {name: ratio for name, ratio in ratios.items() if ratio > 0} | lost
    findings = []
    for is_high, limit, words in (
        (True, limits.update_high, advice.UPDATE_HIGH),
        (False, limits.update_low, advice.UPDATE_LOW),
    ):
        beyond = {
            name: ratio
            for name, ratio in moving.items()
            if (ratio > limit if is_high else ratio < limit or name in lost)
        }
        if not beyond:
            continue
        name = (max if is_high else min)(beyond, key=lambda own: beyond[own])
        said = (
            f"one optimizer step changes {len(beyond)} of {len(moving)} weights by too "
            f"{'much' if is_high else 'little'}; {name!r} by {beyond[name]:.1e} of its norm"
        )
        layer = "" if len(beyond) > len(moving) / 2 else name
        findings.append(
            Finding(
                "warn", "update", layer, said, beyond[name], limit, None,
                advice.UPDATE_LOST if name in lost and not is_high else words, "CS231n notes: aim for 1e-3",
            )
        )  # fmt: skip
    return findings


def _stands_still(parameter: ParameterTrack) -> bool:
    return bool(parameter.window[3]) and not any(parameter.window[3])


def growth(points: list[tuple[int, float]], limits: Thresholds) -> float:
    """Return the correlation of gradient norms with the step; 0 if the norms do not triple, or are too few."""
    points = points[-_RECENT:]
    if len(points) < limits.accumulated_steps or not all(np.isfinite(norm) for _, norm in points):
        return 0.0
    steps, norms = np.array(points, dtype=np.float64).T
    if norms.min() <= 0 or norms[-1] < _GROWTH * norms[0] or steps.std() == 0:
        return 0.0
    return float(np.corrcoef(steps, norms)[0, 1])


def _accumulated(ledger: Ledger, limits: Thresholds) -> list[Finding]:
    points, correlation = ledger.gradient_norms[-_RECENT:], growth(ledger.gradient_norms, limits)
    if correlation <= limits.accumulated:
        return []
    norms = [norm for _, norm in points]
    said = f"the gradient norm of the parameters grows linearly, from {norms[0]:.2g} to {norms[-1]:.2g}"
    return [
        Finding(
            "warn",
            "accumulated",
            "",
            said,
            correlation,
            limits.accumulated,
            len(points),
            advice.ACCUMULATED,
            "convention",
        )
    ]
