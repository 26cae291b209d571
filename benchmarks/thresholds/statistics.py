"""Collect the numbers that the limits of the diagnostics are compared with, from one training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.thresholds.healthy import Healthy
from gradcam_kit.diagnostics import ModelDiagnostics, Thresholds, capture_attention, trace_recurrent
from gradcam_kit.diagnostics.ledger import Ledger
from gradcam_kit.diagnostics.maths.heads import distance_from_uniform
from gradcam_kit.diagnostics.tracks import LayerTrack
from gradcam_kit.diagnostics.verdicts.flow import gradient_change, signal_change, spike
from gradcam_kit.diagnostics.verdicts.spread import effective_ranks, spreads
from gradcam_kit.diagnostics.verdicts.units import constant_share, dead_units, saturated_share
from gradcam_kit.diagnostics.verdicts.updates import growth, judged
from gradcam_kit.errors import GradCamKitError

Value = tuple[str, float, str]
"""Name of a threshold, a number that is compared with it, and the layer or parameter; "" for the whole model."""

_LIMITS = Thresholds()
_WINDOW = 10


def measure(healthy: Healthy, steps: int, seed: int) -> Iterator[Value]:
    """Train a healthy model, or only run it, and yield every number that a limit is compared with."""
    torch.manual_seed(seed)
    model = healthy.make()
    losses = []
    if not healthy.rate:
        with ModelDiagnostics(model.eval(), window=_WINDOW) as diagnostics, torch.no_grad():
            for inputs, _ in healthy.data(steps, seed):
                model(inputs)
    else:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=healthy.rate)
        with ModelDiagnostics(model, optimizer=optimizer, window=_WINDOW) as diagnostics:
            for inputs, labels in healthy.data(steps, seed):
                optimizer.zero_grad()
                loss = healthy.loss(model(inputs), labels)
                losses.append(float(loss.detach()))
                loss.backward()
                optimizer.step()
    if healthy.classes:
        chance = math.log(healthy.classes)
        yield "first loss", abs(losses[0] - chance) / chance, ""
    ledger: Ledger = diagnostics.state_dict()["ledger"]
    yield from _of_units(ledger)
    yield from _of_depth(ledger)
    yield from _of_updates(ledger)
    yield from _of_parts(model, healthy, seed)


def _of_units(ledger: Ledger) -> Iterator[Value]:
    for track in ledger.tracks.values():
        window = track.last_window(_LIMITS.dead_samples)
        if track.activation == "relu" and track.units and window.moments.n >= _LIMITS.dead_samples:
            yield "dead_warn", (dead_units(track, window) or 0) / track.units, track.name
        saturated = saturated_share(window, _LIMITS) if track.activation in ("sigmoid", "tanh") else None
        constant = constant_share(track, window)
        if saturated is not None and not track.is_output:
            yield "saturated_warn", saturated, track.name
        if constant is not None and not track.zero_weight:
            yield "constant", constant, track.name
    for track, spread in spreads(ledger, _LIMITS, set(), effective_ranks(ledger, _LIMITS)):
        for name, value in (("rank", spread.rank), ("between", spread.between), ("redundant", spread.repeated)):
            if value is not None:
                yield name, value, track.name


def _of_depth(ledger: Ledger) -> Iterator[Value]:
    tracks = sorted(ledger.tracks.values(), key=lambda track: track.order)
    for name, change in (("gradient_warn", gradient_change(tracks, _LIMITS)), ("depth", signal_change(tracks))):
        if change is not None:
            yield name, change.size, ""
    norms = ledger.window_norms
    yield from (("spike", spike(norms[:end]), "") for end in range(4, len(norms) + 1))
    yield from (("scale", _largest(track), track.name) for track in tracks)


def _largest(track: LayerTrack) -> float:
    moments = track.total.merge(track.open.moments)
    return max(abs(moments.minimum), abs(moments.maximum)) if moments.finite else 0.0


def _of_updates(ledger: Ledger) -> Iterator[Value]:
    for parameter in judged(ledger.parameters.values()):
        ratios = [ratio for ratio in parameter.window[3] if ratio > 0]
        if ratios:
            yield "update_low", median(ratios), parameter.name
            yield "update_high", median(ratios), parameter.name
    if ledger.gradient_norms:
        yield "accumulated", growth(ledger.gradient_norms, _LIMITS), ""


def _of_parts(model: nn.Module, healthy: Healthy, seed: int) -> Iterator[Value]:
    """Yield numbers of attention heads and of gates of recurrent layers, if there are any."""
    inputs = next(healthy.data(1, seed + 100))[0]
    model.eval()
    for read in (_of_heads, _of_gates):
        with suppress(GradCamKitError):  # the model has no such layers
            yield from read(model, inputs)


def _of_heads(model: nn.Module, inputs: Any) -> Iterator[Value]:
    with torch.no_grad(), capture_attention(model) as attention:
        model(inputs)
    spread = {name: distance_from_uniform(attention[name].probabilities) for name in attention}
    for row in attention.heads():
        where, own = f"{row.layer}, head {row.head}", spread[row.layer]
        yield "sink", row.sink, where
        # Two nearly uniform heads are always close to each other, so the diagnostics do not judge such pairs.
        if row.distance is not None and row.distance < max(own[row.head], own[row.nearest]) / 2:
            yield "head_distance", row.distance, where


def _of_gates(model: nn.Module, inputs: Any) -> Iterator[Value]:
    found = trace_recurrent(model, inputs, thresholds=Thresholds(stuck_warn=0.0)).findings
    shares = [float(one.value) for one in found if one.kind == "stuck-gate" and one.value is not None]
    yield "stuck_warn", max(shares, default=0.0), "lstm"
