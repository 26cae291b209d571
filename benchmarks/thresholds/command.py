"""`python -m benchmarks thresholds`: measure how far healthy models stay away from the limits of the diagnostics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Annotated

import typer

from benchmarks.options import Out, Quick
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.thresholds.healthy import MODELS
from benchmarks.thresholds.statistics import measure
from gradcam_kit.diagnostics import Thresholds

LIMITS: Mapping[str, tuple[str, str]] = {
    "dead_warn": ("share of the units of a ReLU that were never active", "above"),
    "dead_bad": ("the same", "above"),
    "saturated_warn": ("share of the values where the slope is below 5 % of its maximum", "above"),
    "saturated_bad": ("the same", "above"),
    "constant": ("share of the units whose output is the same for every input", "above"),
    "rank": ("effective rank of pooled features", "below"),
    "between": ("share of the mean square that differs between samples", "below"),
    "redundant": ("share of the units that correlate above 0.95 with another one", "above"),
    "gradient_warn": ("change of the gradient norm over depth, as a factor", "above"),
    "gradient_bad": ("the same", "above"),
    "spike": ("ratio of the gradient norm to the median of the previous windows", "above"),
    "depth": ("change of the standard deviation of activations over depth, as a factor", "above"),
    "scale": ("largest absolute activation (the limit holds in float16)", "above"),
    "update_low": ("relative update of a weight", "below"),
    "update_high": ("relative update of a weight", "above"),
    "accumulated": ("correlation of growing gradient norms with the step", "above"),
    "head_distance": ("Jensen-Shannon distance of two heads that are not nearly uniform", "below"),
    "sink": ("share of the attention that one token gets", "above"),
    "stuck_warn": ("share of the units with a gate that does not move", "above"),
    "first loss": ("relative distance of the first loss from the loss of guessing", "above"),
}
"""Threshold -> the number that is compared with it, and the side of the limit on which a finding is reported."""

SAME = {"dead_bad": "dead_warn", "saturated_bad": "saturated_warn", "gradient_bad": "gradient_warn"}
"""Threshold -> another threshold for the same number."""

LEFT_OUT: Mapping[str, str] = {
    "uniform": "only marks a head in a table",
    "dead_samples": "the minimum number of samples for a verdict",
    "collapsed_samples": "the minimum number of samples for a verdict",
    "accumulated_steps": "the minimum number of steps for a verdict",
    "correlation": "used to compute the number that `redundant` limits",
    "stuck_margin": "used to compute the number that `stuck_warn` limits",
    "stuck_std": "used to compute the number that `stuck_warn` limits",
}
"""Threshold that is not compared with numbers of healthy models -> the reason."""

FIRST_LOSS, FRESH = 0.2, 4


def run(
    steps: Annotated[int, typer.Option(help="number of steps of each training", min=4)] = 40,
    seeds: Annotated[int, typer.Option(help="number of trainings of each model", min=1)] = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Measure how far healthy models, fresh and trained, stay away from every limit of the diagnostics."""
    if quick:
        steps, seeds = 8, 1
    record("thresholds", "cpu", rows(steps, seeds), threads=1, out=out, quick=quick, steps=steps, seeds=seeds)


def rows(steps: int, seeds: int) -> Iterator[Row]:
    """Yield one row per limit: the distribution over layers and models, the worst value, the margin to the limit."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    failed: list[Iterator[Row]] = []
    for name, healthy in MODELS.items():
        for length in (FRESH, steps):  # a fresh and a trained model
            for seed in range(seeds):
                case = {"threshold": "all", "statistic": f"{name}, {length} steps, seed {seed}"}

                def read(healthy=healthy, length=length, seed=seed, name=name) -> Iterator[Row]:  # type: ignore[no-untyped-def]
                    for threshold, value, layer in measure(healthy, length, seed):
                        if threshold == "first loss":  # the same for both lengths, so read it once per seed
                            if length == FRESH:
                                found[threshold].append((value, name))
                            continue
                        where = f"{name} after {length} steps" + (f", {layer}" if layer else "")
                        found[threshold].append((value, where))
                    yield from ()

                failed.append(attempt(case, read))
    yield from chain.from_iterable(failed)
    yield from map(partial(row, found), LIMITS)


def limit_of(threshold: str) -> float:
    """Return the default value of a threshold."""
    return FIRST_LOSS if threshold == "first loss" else float(getattr(Thresholds(), threshold))


def row(found: Mapping[str, list[tuple[float, str]]], threshold: str) -> Row:
    """Return the row of one threshold: its numbers in healthy models, and their margin to the limit."""
    statistic, side = LIMITS[threshold]
    case = {"threshold": threshold, "statistic": statistic}
    values = found.get(SAME.get(threshold, threshold), [])
    if not values:
        return Row(case, skipped="no healthy model has such a number")
    worst, where = max(values) if side == "above" else min(values)
    limit = limit_of(threshold)
    crossed = [value for value, _ in values if (value >= limit if side == "above" else value < limit)]
    margin = (limit / worst if side == "above" else worst / limit) if worst else float("inf")
    figures = {
        "distribution": Figure.of(value for value, _ in values),
        "worst": _single(worst),
        "limit": _single(limit),
        "beyond": _single(len(crossed) / len(values)),
        "values": _single(len(values)),
    }
    if margin != float("inf"):
        figures["margin"] = _single(margin)
    return Row(case, figures, note=f"findings are reported {side} the limit; worst: {where}")


def _single(value: float) -> Figure:
    return Figure(value, value, value)
