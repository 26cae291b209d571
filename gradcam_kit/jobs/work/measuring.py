"""Metrics of stored heatmaps: the same numbers whether a run writes them at once or `evaluate` does later."""

from __future__ import annotations

import hashlib
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradcam_kit.capture import check_model, read_inputs
from gradcam_kit.comparison.compared import ComparedMethod, with_baselines
from gradcam_kit.comparison.measuring import baseline_maps, known_metrics, measured
from gradcam_kit.errors import OptionError, is_out_of_memory, raise_interruption
from gradcam_kit.functional import move, normalize, upsample
from gradcam_kit.jobs.request import one_line
from gradcam_kit.jobs.sources.masks import Masks
from gradcam_kit.jobs.storage.rows import Row, heatmap_of, method_name
from gradcam_kit.methods import BaseCAM
from gradcam_kit.metrics import BASELINES, METRICS, Metric, MetricResult, Status
from gradcam_kit.targets.scores import ScoreKind

_SEED = 0


def chosen_metrics(names: Iterable[str], masks: Masks | None = None) -> tuple[Metric, ...]:
    """The metrics of these names, without repetitions.

    Args:
        names: of metrics.
        masks: where the objects are.

    Raises:
        UnknownNameError: no such metric.
        OptionError: a metric that needs to know where the objects are, without masks.
    """
    metrics = tuple(known_metrics(names))
    for metric in metrics:
        if metric.needs_masks and masks is None:
            working = ", ".join(name for name, one in METRICS.items() if not one.needs_masks)
            raise OptionError(
                f"the metric {metric.name!r} needs masks of the objects, which pictures alone do not have: 'evaluate' "
                f"and 'compare' take them with --masks FOLDER; those that work without are {working}"
            )
    return metrics


def columns_of(metric: str) -> tuple[str, str]:
    """The columns of a metric: its number, and its status in words."""
    column = metric.replace("-", "_")
    return column, f"{column}_status"


def metric_fields(metrics: Iterable[str]) -> tuple[pa.Field, ...]:
    """The fields of the columns; numbers are null where they are undefined."""
    fields = [zip(columns_of(name), (pa.float32(), pa.string()), strict=True) for name in dict.fromkeys(metrics)]
    return tuple(pa.field(column, kind) for own in fields for column, kind in own)


def mark_unmeasured(rows: Iterable[Row], metrics: Iterable[Metric]) -> None:
    """Note in rows that nothing could be computed for them."""
    names = [columns_of(metric.name) for metric in metrics]
    for row in rows:
        for number, status in names:
            row |= {number: None, status: Status.ERROR.name.lower()}


def measure(
    model: nn.Module,
    cams: Sequence[BaseCAM],
    metrics: Sequence[Metric],
    images: Float[Tensor, "n c h w"],
    found: Sequence[Sequence[Row]],
    baselines: bool = False,
    masks: Bool[Tensor, "n h w"] | None = None,
    scores: ScoreKind | None = None,
) -> None:
    """Add the columns of metrics to the rows of pictures; what keeps a picture from being measured is its `error`.

    Args:
        model: what made the heatmaps.
        cams: the methods, for their normalization and for metrics that run them again.
        metrics: what to measure.
        images: as the model gets them.
        found: of each image the rows, one per method and target.
        baselines: whether the rows are those of `baseline_rows`.
        masks: where the objects are, for metrics that ask.
        scores: what the probability of a class is, see `ClassProbability`.
    """
    before = [row.get("error") for rows in found for row in rows]
    try:
        results = results_of(model, cams, metrics, images, found, baselines=baselines, masks=masks, scores=scores)
    except Exception as error:  # one picture ends no run
        raise_interruption(error)
        traceback.clear_frames(error.__traceback__)
        failure = error
        if len(found) == 1:
            mark_unmeasured(found[0], metrics)
            for row in found[0]:
                row["error"] = one_line(f"{type(error).__name__}: the metrics cannot be computed: {error}")
            return
    else:
        _write(results, found)
        return
    half = len(found) // 2  # only here the error is gone, and with it what it kept in memory
    for part in (slice(half), slice(half, None)):
        own = None if masks is None else masks[part]
        measure(model, cams, metrics, images[part], found[part], baselines, own, scores)
    if before == [row.get("error") for rows in found for row in rows] and not is_out_of_memory(failure):
        try:
            results_of(model, cams, metrics, images, found, baselines=baselines, masks=masks, scores=scores)
        except Exception as error:
            raise_interruption(error)
            return
        raise failure  # neither the halves nor the whole fail again, so it is about none of the images


def results_of(
    model: nn.Module,
    cams: Sequence[BaseCAM],
    metrics: Sequence[Metric],
    images: Float[Tensor, "n c h w"],
    found: Sequence[Sequence[Row]],
    policy: str = "given",
    baselines: bool = False,
    masks: Bool[Tensor, "n h w"] | None = None,
    scores: ScoreKind | None = None,
) -> dict[str, dict[str, MetricResult]]:
    """Method -> metric -> one number per image and target; arguments as in `measure`.

    `policy` is where the classes come from, in words: one of the settings.
    """
    ours = [ComparedMethod(name, name, cam) for name, cam in zip(map(method_name, cams), cams, strict=True)]
    compared_methods = with_baselines([]) if baselines else ours
    rows = {one.label: _rows_of(one.label, found) for one in compared_methods}
    classes = [row["target"] for row in rows[compared_methods[0].label]]
    several = len(classes) // len(found) if len(classes) > len(found) else None
    shape = (len(found),) if several is None else (len(found), several)
    identities = torch.tensor([_identity(one[0]["path"]) for one in found])
    heatmaps = baseline_maps(compared_methods, images, several, _SEED, identities)
    for one in compared_methods:
        if one.cam is not None:
            stored = torch.from_numpy(np.stack([heatmap_of(row) for row in rows[one.label]]).astype(np.float32))
            maps = normalize(upsample(move(stored, images.device), images.shape[2:]), one.cam.normalize)
            heatmaps[one.label] = maps.reshape(*shape, *maps.shape[1:])
    return measured(
        model,
        read_inputs(images, {}),
        heatmaps,
        compared_methods,
        metrics,
        targets=None if None in classes else move(torch.tensor(classes), images.device).reshape(shape),
        policy=policy,
        masks=masks,
        seed=_SEED,
        identities=identities,
        batch_size=min(cam.batch_size for cam in cams),
        scores={check_model(model): scores},
    )


def baseline_rows(rows: Sequence[Row]) -> list[Row]:
    """Return rows for the baselines of a picture, one per baseline and target, from the rows of its methods."""
    targets = [row for row in rows if row["method"] == rows[0]["method"]]
    kept = ("path", "rank", "target", "status")
    return [{**{key: row[key] for key in kept}, "method": name, "error": None} for name in BASELINES for row in targets]


@dataclass
class MetricMeans:
    """Means over rows, added up shard by shard."""

    sums: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: defaultdict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, rows: Iterable[Row], metrics: Sequence[str]) -> None:
        """Count the rows that have these metrics."""
        for row in rows:
            for metric in metrics:
                number, status = columns_of(metric)
                if row.get(status) is None:
                    continue
                self.statuses[row["method"], metric][row[status]] += 1
                if row[status] == "ok" or (row["method"] == "ones" and row[number] is not None):
                    self.sums[row["method"], metric] += row[number]
                    self.counts[row["method"], metric] += 1

    def add_measured(self, method: str, numbers: Mapping[str, MetricResult]) -> None:
        """Count what was measured of a method, by metric."""
        for metric, one in numbers.items():
            rows: list[Row] = [{"method": method} for _ in range(len(one.values))]
            _write({method: {metric: one}}, [rows])
            self.add(rows, [metric])

    def lines(self) -> list[dict[str, Any]]:
        """One per method and metric: the mean over the rows that are ok, how many those are, and what the others are.

        The mean is None where no row is ok. Maps of ones are flagged, because they are constant, and so they are on
        purpose: their mean is what the formula gives, with a count of 0.
        """
        found = []
        for (method, metric), statuses in self.statuses.items():
            ok = statuses["ok"]
            others = {status: count for status, count in statuses.items() if status != "ok"}
            count = self.counts[method, metric]
            mean = self.sums[method, metric] / count if count else None
            better = METRICS[metric].better if metric in METRICS else ""
            line = {"method": method, "metric": metric, "better": better, "mean": mean, "count": ok, "others": others}
            found.append(line)
        return found


def by_method(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Method -> metric -> line, for a table with a row for each method."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["method"], {})[line["metric"]] = line
    return found


def not_counted(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the means leave out, in words: of which metrics how many rows, with which status, and of which methods."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        for status, count in line["others"].items():
            kinds = found.setdefault(line["metric"], {})
            kinds.setdefault(f"{count:,} {status.replace('_', ' ')}", []).append(line["method"])
    said: dict[str, list[str]] = {}
    for metric, kinds in found.items():
        words = "; ".join(f"{kind} ({', '.join(methods)})" for kind, methods in kinds.items())
        said.setdefault(words, []).append(metric)
    return [f"not counted in {', '.join(metrics)}: {words}" for words, metrics in said.items()]


def _rows_of(method: str, found: Sequence[Sequence[Row]]) -> list[Row]:
    return [row for rows in found for row in rows if row["method"] == method]


def _write(results: dict[str, dict[str, MetricResult]], found: Sequence[Sequence[Row]]) -> None:
    for method, by_metric in results.items():
        rows = _rows_of(method, found)
        for metric, one in by_metric.items():
            number, status = columns_of(metric)
            values = one.values.float()
            finite = values.isfinite().tolist()
            for row, value, defined, code in zip(rows, values.tolist(), finite, one.status.tolist(), strict=True):
                row |= {number: value if defined else None, status: Status(code).name.lower()}


def _identity(key: str) -> int:
    """A number that belongs to a picture wherever it stands, for its random draws."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
