"""Collapsed and redundant features, from the pooled outputs of a few samples."""

from __future__ import annotations

import numpy as np
import torch

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.kinds import FEW_INPUTS
from gradcam_kit.diagnostics.maths.spectra import effective_rank, redundancy
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import LayerTrack, Ledger

_GATES = ("Sigmoid", "Hardsigmoid", "Softmax", "LogSoftmax")
_FEW_DIRECTIONS = 4
_FEW_CLASSES = 4  # trained features of c classes span c - 1 directions: neural collapse, Papyan et al. 2020


def effective_ranks(ledger: Ledger, limits: Thresholds) -> dict[str, float]:
    """Return the effective rank of every layer with features of at least two samples, in the last window."""
    ranks = {}
    for track in ledger.tracks.values():
        features = track.last_window(limits.collapsed_samples).features
        if features is not None and len(features) > 1 and bool(np.isfinite(features).all()):
            ranks[track.name] = effective_rank(torch.from_numpy(features))
    return ranks


def spread_findings(ledger: Ledger, limits: Thresholds, silent: set[str], ranks: dict[str, float]) -> list[Finding]:
    """Return at most one finding for collapsed and one for redundant layers: for the first layer, the likely cause."""
    collapsed: list[Finding] = []
    redundant: list[Finding] = []
    for track in sorted(ledger.tracks.values(), key=lambda own: own.order):
        window = track.last_window(limits.collapsed_samples)
        if window.features is None or len(window.features) < limits.collapsed_samples or track.name not in ranks:
            continue
        features = window.features.astype(np.float64)
        if track.batch < 2 or track.few_inputs or track.units < FEW_INPUTS or track.name in silent:
            continue
        between = float(features.var(axis=0).mean()) / max(window.moments.mean_square, 1e-300)
        finding = _collapsed(track, ranks[track.name], between, len(features), ledger, limits)
        if finding is not None:
            collapsed.append(finding)
            continue
        share = redundancy(torch.from_numpy(features), limits.correlation)
        # In collapsed features all units correlate, so redundancy is judged only without collapse.
        spans = ranks[track.name] >= max(_FEW_DIRECTIONS, 0.1 * min(len(features), track.units))
        if share >= limits.redundant and spans and not collapsed and not _is_pass_through(track, ledger):
            redundant.append(_redundant(track, share, len(features), limits))
    return [*_first(collapsed), *_first(redundant)]


def _first(findings: list[Finding]) -> list[Finding]:
    return findings[:1]


def _is_pass_through(track: LayerTrack, ledger: Ledger) -> bool:
    """Whether a layer without weights only repeats units of an earlier layer that was judged."""
    source = ledger.tracks.get(track.producer or "")
    return not track.owns_weight and source is not None and source.open.features is not None


def _collapsed(
    track: LayerTrack, rank: float, between: float, rows: int, ledger: Ledger, limits: Thresholds
) -> Finding | None:
    by_rank = rank < limits.rank and ledger.outputs >= _FEW_CLASSES
    by_share = between < limits.between and track.kind not in _GATES
    if not by_rank and not by_share:
        return None
    if by_rank:
        said, value, limit = f"the features of {track.units} units span {rank:.2f} directions", rank, limits.rank
        source = "effective rank: Roy & Vetterli 2007; limit: convention"
    else:
        said, value, limit = (
            f"only {between:.1e} of the mean square is variance between samples",
            between,
            limits.between,
        )
        source = "convention"
    return Finding("bad", "collapsed", track.layer, said, value, limit, rows, advice.COLLAPSED, source)


def _redundant(track: LayerTrack, share: float, rows: int, limits: Thresholds) -> Finding:
    said = f"{share:.0%} of {track.units} units correlate above {limits.correlation:g} with another unit"
    return Finding(
        "warn", "redundant", track.layer, said, share, limits.redundant, rows, advice.REDUNDANT, "convention"
    )
