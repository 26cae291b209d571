"""Verdicts on collapsed and redundant features, from the pooled outputs of a few samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.kinds import FEW_INPUTS
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.spectra import effective_rank, redundancy
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.tracks import LayerTrack

_GATES = ("Sigmoid", "Hardsigmoid", "Softmax", "LogSoftmax")
_FEW_DIRECTIONS = 4
# With fewer classes, a low rank is not a fault: trained features of c classes span c - 1 directions (neural collapse,
# Papyan et al. 2020).
_FEW_CLASSES = 4


def effective_ranks(ledger: Ledger, limits: Thresholds) -> dict[str, float]:
    """Return the effective rank of every layer with features of at least two samples, in the last window."""
    ranks = {}
    for track in ledger.tracks.values():
        features = track.last_window(limits.collapsed_samples).features
        if features is not None and len(features) > 1 and bool(np.isfinite(features).all()):
            ranks[track.name] = effective_rank(torch.from_numpy(features))
    return ranks


def spread_findings(ledger: Ledger, limits: Thresholds, silent: set[str], ranks: dict[str, float]) -> list[Finding]:
    """Return at most one finding about collapsed and one about redundant layers, each for the first such layer."""
    collapsed: list[Finding] = []
    redundant: list[Finding] = []
    for track, spread in spreads(ledger, limits, silent, ranks):
        finding = _collapsed(track, spread, limits)
        if finding is not None:
            collapsed.append(finding)
        elif spread.repeated is not None and spread.repeated >= limits.redundant and not collapsed:
            redundant.append(_redundant(track, spread.repeated, spread.rows, limits))
    return [*_first(collapsed), *_first(redundant)]


@dataclass(frozen=True)
class Spread:
    """The spread of a layer's pooled outputs in the last window.

    Attributes:
        rank: effective rank; None if the model has so few classes that trained features may have a low rank.
        between: share of the mean square that is variance between samples; None for gates, whose values hardly differ.
        repeated: share of units that repeat another unit; None if redundancy is not judged.
        rows: number of samples.
    """

    rank: float | None
    between: float | None
    repeated: float | None
    rows: int


def spreads(
    ledger: Ledger, limits: Thresholds, silent: set[str], ranks: dict[str, float]
) -> Iterator[tuple[LayerTrack, Spread]]:
    """Yield the judged layers and the spread of their features, in the order of execution."""
    for track in sorted(ledger.tracks.values(), key=lambda own: own.order):
        window = track.last_window(limits.collapsed_samples)
        if window.features is None or len(window.features) < limits.collapsed_samples or track.name not in ranks:
            continue
        if track.batch < 2 or track.few_inputs or track.units < FEW_INPUTS or track.name in silent:
            continue
        features, rank = window.features.astype(np.float64), ranks[track.name]
        between = float(features.var(axis=0).mean()) / max(window.moments.mean_square, 1e-300)
        # Where features span few directions, all units correlate, so redundancy is not judged.
        spans = rank >= max(_FEW_DIRECTIONS, 0.1 * min(len(features), track.units))
        # Redundancy of a model's outputs is not judged: classes that are absent from the data have similar outputs.
        is_judged = spans and not track.is_output and not _is_pass_through(track, ledger, limits.collapsed_samples)
        yield (
            track,
            Spread(
                rank if ledger.outputs >= _FEW_CLASSES else None,
                None if track.kind in _GATES else between,
                redundancy(torch.from_numpy(features), limits.correlation) if is_judged else None,
                len(features),
            ),
        )


def _first(findings: list[Finding]) -> list[Finding]:
    return findings[:1]


def _is_pass_through(track: LayerTrack, ledger: Ledger, enough: int) -> bool:
    """Whether a layer has no weights, and gets its input from a layer whose features were kept, too."""
    source = ledger.tracks.get(track.producer or "")
    return not track.owns_weight and source is not None and source.last_window(enough).features is not None


def _collapsed(track: LayerTrack, spread: Spread, limits: Thresholds) -> Finding | None:
    rank, between = spread.rank, spread.between
    if rank is not None and rank < limits.rank:
        said, value, limit = f"the features of {track.units} units span {rank:.2f} directions", rank, limits.rank
        source = "effective rank: Roy & Vetterli 2007; limit: convention"
    elif between is not None and between < limits.between:
        said, value, limit = (
            f"only {between:.1e} of the mean square is variance between samples",
            between,
            limits.between,
        )
        source = "convention"
    else:
        return None
    return Finding("bad", "collapsed", track.layer, said, value, limit, spread.rows, advice.COLLAPSED, source)


def _redundant(track: LayerTrack, share: float, rows: int, limits: Thresholds) -> Finding:
    said = f"{share:.0%} of {track.units} units correlate above {limits.correlation:g} with another unit"
    return Finding(
        "warn", "redundant", track.layer, said, share, limits.redundant, rows, advice.REDUNDANT, "convention"
    )
