"""Build the report and its rows from a ledger."""

from __future__ import annotations

import math
from dataclasses import replace

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.histogram import zeros
from gradcam_kit.diagnostics.report import LayerRow, ParameterRow, Report, sorted_findings
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import LayerTrack, ParameterTrack
from gradcam_kit.diagnostics.verdicts import (
    behind_nonfinite,
    dead_units,
    effective_ranks,
    flow_findings,
    spread_findings,
    unit_findings,
    update_findings,
)


def report_of(ledger: Ledger, limits: Thresholds) -> Report:
    """Judge the observations, and return the report."""
    ranks = effective_ranks(ledger, limits)
    broken = behind_nonfinite(list(ledger.tracks.values()), limits)
    units, silent, starved = unit_findings(ledger, limits, broken)
    dead = {finding.layer for finding in units if finding.kind in ("dead", "constant")}
    flow = flow_findings(ledger, limits, blocked=any(_silences(finding, limits) for finding in units))
    in_front = {track.producer for track in ledger.tracks.values() if track.name in silent and track.producer}
    spread = spread_findings(ledger, limits, silent | in_front | broken, ranks)
    updates = update_findings(ledger, limits, dead, starved)
    if any(_collapses(finding) for finding in (*flow, *updates)):
        spread = [replace(finding, level="warn") if finding.level == "bad" else finding for finding in spread]
    findings = [*flow, *units, *updates, *spread]
    tracks = sorted(ledger.tracks.values(), key=lambda track: track.order)
    return Report(
        sorted_findings(findings) if ledger.steps else (),
        tuple(layer_row(track, limits, ranks.get(track.name)) for track in tracks),
        tuple(map(parameter_row, ledger.parameters.values())),
        ledger.never_ran,
        tuple(ledger.skipped.items()),
        tuple(ledger.notes),
        ledger.steps,
        tuple((track.name, int(track.counts.sum())) for track in tracks),
    )


def _collapses(finding: Finding) -> bool:
    """Whether a finding explains collapsed features: a signal that vanishes, or updates that are far too large."""
    too_large = finding.kind == "update" and not finding.layer and finding.advice == advice.UPDATE_HIGH
    return too_large or (finding.kind == "vanishing" and finding.level == "bad")


def _silences(finding: Finding, limits: Thresholds) -> bool:
    """Whether no signal passes through the layer of a finding."""
    is_whole = finding.value is not None and finding.value >= limits.constant
    return finding.level == "bad" and finding.kind in ("dead", "constant") and is_whole


def layer_row(track: LayerTrack, limits: Thresholds, rank: float | None) -> LayerRow:
    """Return the row of one layer: totals since the start, with dead units and rank of the last window."""
    moments = track.total.merge(track.open.moments)
    counted = int(track.counts.sum())
    share = zeros(track.counts) / counted if counted else 0.0
    return LayerRow(
        name=track.name,
        type=track.kind,
        calls=track.calls,
        n=moments.n,
        elements=moments.elements,
        shape=track.shape,
        unit_axis=track.unit_axis,
        mean=moments.mean if moments.finite else math.nan,
        std=moments.std,
        min=moments.minimum,
        max=moments.maximum,
        nan=moments.nan,
        inf=moments.inf,
        zeros=round(share * moments.elements),
        dead=dead_units(track, track.last_window(limits.dead_samples)),
        units=track.units,
        effective_rank=rank,
        gradient_norm=track.gradient_norm.value,
        gradient_rms=track.gradient_rms.value,
    )


def parameter_row(track: ParameterTrack) -> ParameterRow:
    """Return the last norms of one parameter, and its median update."""
    ratio = track.gradient_norm / track.norm if track.norm > 0 else math.nan
    return ParameterRow(track.name, track.norm, track.gradient_norm, ratio, track.update.value, track.is_local)


def history_row(track: LayerTrack, step: int) -> dict[str, float]:
    """Return the numbers of the open window for the history."""
    window = track.open
    moments = window.moments
    return {
        "step": float(step),
        "elements": float(moments.elements),
        "mean": moments.mean,
        "std": moments.std,
        "min": moments.minimum,
        "max": moments.maximum,
        "not_finite": float(moments.nan + moments.inf),
        "dead": float(dead_units(track, window) or 0),
        "gradient_norm": window.gradient_norm,
        "saturated": window.saturated / window.sampled if window.sampled else 0.0,
    }
