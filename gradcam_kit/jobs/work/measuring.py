"""Measure stored heatmaps, with equal numbers whether the run measures them or a later `evaluate` does."""

from __future__ import annotations

import hashlib
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradcam_kit.capture import read_inputs
from gradcam_kit.comparison.compared import ComparedMethod, with_baselines
from gradcam_kit.comparison.measuring import baseline_maps, known_metrics, measure_all
from gradcam_kit.comparison.question import Question
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
    """Return the metrics of these names, without duplicates.

    Args:
        names: names of metrics.
        masks: masks of the objects.

    Raises:
        UnknownNameError: a metric does not exist.
        OptionError: a metric needs masks, and `masks` is None.
    """
    metrics = tuple(known_metrics(names))
    for metric in metrics:
        if metric.needs_masks and masks is None:
            working = ", ".join(name for name, one in METRICS.items() if not one.needs_masks)
            raise OptionError(
                f"the metric {metric.name!r} needs masks of the objects: 'evaluate' "
                f"and 'compare' take them with --masks FOLDER; metrics that work without masks are {working}"
            )
    return metrics


def columns_of(metric: str) -> tuple[str, str]:
    """Return the names of a metric's columns: the column of numbers, and the column of statuses in words."""
    column = metric.replace("-", "_")
    return column, f"{column}_status"


def metric_fields(metrics: Iterable[str]) -> tuple[pa.Field, ...]:
    """Return the Arrow fields of the metrics' columns; numbers are null where they are undefined."""
    fields = [zip(columns_of(name), (pa.float32(), pa.string()), strict=True) for name in dict.fromkeys(metrics)]
    return tuple(pa.field(column, kind) for own in fields for column, kind in own)


def mark_unmeasured(rows: Iterable[Row], metrics: Iterable[Metric]) -> None:
    """Mark rows for which the metrics could not be computed."""
    names = [columns_of(metric.name) for metric in metrics]
    for row in rows:
        for number, status in names:
            row |= {number: None, status: Status.ERROR.name.lower()}


@dataclass(frozen=True, eq=False)
class MeasuredBatch:
    """Images of a run with the rows whose heatmaps are measured.

    Attributes:
        images: the model's input.
        rows: rows of each image, one per method and target.
        baselines: whether the rows are the result of `baseline_rows`.
        masks: where the objects are, for metrics that need them.
    """

    images: Float[Tensor, "n c h w"]
    rows: Sequence[Sequence[Row]]
    baselines: bool = False
    masks: Bool[Tensor, "n h w"] | None = None

    def halves(self) -> Iterator[MeasuredBatch]:
        """Yield the two halves of the batch."""
        half = len(self.rows) // 2
        for part in (slice(half), slice(half, None)):
            masks = None if self.masks is None else self.masks[part]
            yield replace(self, images=self.images[part], rows=self.rows[part], masks=masks)

    def rows_of(self, method: str) -> list[Row]:
        """Return the rows of one method, image by image."""
        return [row for rows in self.rows for row in rows if row["method"] == method]

    @property
    def errors(self) -> list[str | None]:
        """The error of each row; None for a row without an error."""
        return [row.get("error") for rows in self.rows for row in rows]


@dataclass(frozen=True, eq=False)
class Measurer:
    """Measures the heatmaps of a run.

    Attributes:
        model: the model that made the heatmaps.
        cams: the methods, for their normalization and for metrics that run them again.
        metrics: metrics to measure.
        scores: kind of the class scores, see `ClassProbability`.
        policy: how the classes were chosen, which is one of the stored settings.
    """

    model: nn.Module
    cams: Sequence[BaseCAM]
    metrics: Sequence[Metric]
    scores: ScoreKind | None = None
    policy: str = "given"

    def measure(self, batch: MeasuredBatch) -> None:
        """Add the columns of the metrics to the rows; if a picture cannot be measured, set its `error`.

        A batch that fails is halved until only the faulty images fail.
        """
        before = batch.errors
        try:
            results = self.results(batch)
        except Exception as error:  # one picture must not end a run
            raise_interruption(error)
            traceback.clear_frames(error.__traceback__)
            failure = error
            if len(batch.rows) == 1:
                mark_unmeasured(batch.rows[0], self.metrics)
                for row in batch.rows[0]:
                    row["error"] = one_line(f"{type(error).__name__}: the metrics cannot be computed: {error}")
                return
        else:
            _write(results, batch)
            return
        for half in batch.halves():  # outside `except`, so that the traceback and the tensors it holds are freed
            self.measure(half)
        if before == batch.errors and not is_out_of_memory(failure):
            try:
                self.results(batch)
            except Exception as error:
                raise_interruption(error)
                return
            raise failure  # neither the halves nor the whole batch failed again, so the images are not at fault

    def results(self, batch: MeasuredBatch) -> dict[str, dict[str, MetricResult]]:
        """Return method or baseline -> metric -> one number per image and target.

        Raises:
            Exception: any exception of the model or a metric.
        """
        ours = [ComparedMethod(method_name(cam), method_name(cam), cam) for cam in self.cams]
        found = with_baselines([]) if batch.baselines else ours
        classes = [row["target"] for row in batch.rows_of(found[0].label)]
        n = len(batch.rows)
        per_image = len(classes) // n if len(classes) > n else None
        shape = (n,) if per_image is None else (n, per_image)
        device = batch.images.device
        question = Question(
            self.model,
            read_inputs(batch.images, {}),
            None if None in classes else move(torch.tensor(classes), device).reshape(shape),
            policy=self.policy,
            scores=self.scores,
            masks=batch.masks,
            batch_size=min(cam.batch_size for cam in self.cams),
            seed=_SEED,
            identities=torch.tensor([_identity(rows[0]["path"]) for rows in batch.rows]),
        )
        heatmaps = baseline_maps(question, found, per_image)
        for one in found:
            if one.cam is not None:
                stored = np.stack([heatmap_of(row) for row in batch.rows_of(one.label)]).astype(np.float32)
                enlarged = upsample(move(torch.from_numpy(stored), device), batch.images.shape[2:])
                maps = normalize(enlarged, one.cam.normalize)
                heatmaps[one.label] = maps.reshape(*shape, *maps.shape[1:])
        return measure_all(question, heatmaps, found, self.metrics)


def baseline_rows(rows: Sequence[Row]) -> list[Row]:
    """Return rows for the baselines of a picture, one per baseline and target, from the rows of its methods."""
    targets = [row for row in rows if row["method"] == rows[0]["method"]]
    kept = ("path", "rank", "target", "status")
    return [{**{key: row[key] for key in kept}, "method": name, "error": None} for name in BASELINES for row in targets]


@dataclass
class MetricMeans:
    """Means of metrics over rows, accumulated shard by shard.

    Attributes:
        sums: (method, metric) -> sum of the numbers that enter the mean.
        counts: (method, metric) -> how many numbers the sum has.
        statuses: (method, metric) -> number of rows with each status.
    """

    sums: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: defaultdict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, rows: Iterable[Row], metrics: Sequence[str]) -> None:
        """Accumulate the rows that have these metrics."""
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
        """Accumulate the measurements of a method, by metric."""
        for metric, one in numbers.items():
            self.add(({"method": method, **columns} for columns in _columns(metric, one)), [metric])

    def lines(self) -> list[dict[str, Any]]:
        """Return a dict per method and metric: the mean over rows with the status "ok", and counts by status.

        The mean is None if no row has the status "ok". The baseline of ones is an exception: its rows have another
        status, because its heatmap is constant on purpose, but their numbers are averaged, with a count of 0.
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
    """Return method -> metric -> its dict in `lines`, for a table with a row for each method."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["method"], {})[line["metric"]] = line
    return found


def not_counted(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return notes on rows that the means leave out, with the metrics, counts, statuses and methods."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        for status, count in line["others"].items():
            kinds = found.setdefault(line["metric"], {})
            kinds.setdefault(f"{count:,} with status {status}", []).append(line["method"])
    said: dict[str, list[str]] = {}
    for metric, kinds in found.items():
        words = "; ".join(f"{kind} ({', '.join(methods)})" for kind, methods in kinds.items())
        said.setdefault(words, []).append(metric)
    return [f"not counted in {', '.join(metrics)}: {words}" for words, metrics in said.items()]


def _write(results: Mapping[str, Mapping[str, MetricResult]], batch: MeasuredBatch) -> None:
    """Write numbers and statuses into the rows."""
    for method, by_metric in results.items():
        for metric, one in by_metric.items():
            for row, columns in zip(batch.rows_of(method), _columns(metric, one), strict=True):
                row |= columns


def _columns(metric: str, result: MetricResult) -> Iterator[Row]:
    """Yield the columns of a metric for each of its numbers."""
    number, status = columns_of(metric)
    values = result.values.float()
    finite = values.isfinite().tolist()
    for value, defined, code in zip(values.tolist(), finite, result.status.tolist(), strict=True):
        yield {number: value if defined else None, status: Status(code).name.lower()}


def _identity(key: str) -> int:
    """Return a number derived from a picture's key, which seeds its random numbers."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
