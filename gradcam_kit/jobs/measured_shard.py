"""Complete the metrics of one shard: keep the stored numbers of methods and baselines, and measure the missing ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from gradcam_kit.errors import PictureError
from gradcam_kit.jobs.progress import ProgressBar
from gradcam_kit.jobs.request import RunRequest
from gradcam_kit.jobs.results import Run
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.masks import Masks
from gradcam_kit.jobs.storage.counts import Counts, counted
from gradcam_kit.jobs.storage.rows import Row
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.measuring import (
    MeasuredBatch,
    baseline_rows,
    chosen_metrics,
    columns_of,
    mark_unmeasured,
    metric_fields,
)
from gradcam_kit.jobs.work.reader import Decoded, Failed, Reader, ahead_of, batches
from gradcam_kit.metrics import BASELINES, METRICS

KEYS = (
    pa.field("path", pa.string(), nullable=False),
    pa.field("method", pa.string(), nullable=False),
    pa.field("rank", pa.int32()),
    pa.field("target", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
)
"""The first columns of `metrics/NNNNN.parquet`, which begins with one row for each row of shard NNNNN, in its order.

If baselines were measured, their rows follow, with the name of the baseline as the method.
"""


@dataclass
class MeasuredShard:
    """The measurements of a shard.

    Attributes:
        number: number of the shard.
        rows: the rows of the shard, in order.
        baselines: rows of the baselines for the explained pictures; empty if baselines were not requested.
        settings: the settings of each metric.
        missing: metrics that are not yet measured for the rows.
        missing_baselines: metrics that are not yet measured for the baselines.
    """

    number: int
    rows: list[Row]
    baselines: list[Row]
    settings: dict[str, Any]
    missing: list[str]
    missing_baselines: list[str]

    @classmethod
    def read(
        cls, run: Run, number: int, settings: Mapping[str, Any], with_baselines: bool, overwrite: bool
    ) -> MeasuredShard:
        """Read the measurements of a shard that the run or an earlier `evaluate` made with the same settings."""
        wanted = json.loads(json.dumps(settings))
        table, stored = run.store.read_metrics(number)
        stored_rows = [] if table is None else table.to_pylist()
        earlier = [row for row in stored_rows if row["method"] not in BASELINES]
        baselines = [row for row in stored_rows if row["method"] in BASELINES]
        missing = [
            name
            for name in wanted
            if overwrite
            or stored.get(name) != wanted[name]
            or _lacks_masks(name, earlier)  # masks may have been added since
        ]
        for row in baselines:
            row |= dict.fromkeys(column for name in missing for column in columns_of(name))
            _clear_error(row, [name for name in stored if name not in missing])
        lacking = [name for name in wanted if with_baselines and not _all_have(name, baselines)]
        if earlier and not missing and not lacking:
            return cls(number, earlier, baselines, stored, [], [])
        rows = run.store.read_shard(number)
        kept = {name: one for name, one in stored.items() if name not in missing}
        if earlier:
            columns = ["status", "error", *(column for name in kept for column in columns_of(name))]
            for row, before in zip(rows, earlier, strict=True):
                row |= {column: before[column] for column in columns}
        if not overwrite:
            known = {name: one for name, one in run.manifest.get("metrics", {}).items() if one == wanted.get(name)}
            missing = [name for name in missing if name not in known]
            kept |= known
        for row in rows:
            _clear_error(row, kept)  # also removes the run's message about a missing overlay
        if lacking and not baselines:
            baselines = [row for _, own in _by_picture(rows) if own[0]["status"] == "ok" for row in baseline_rows(own)]
        return cls(number, rows, baselines, {**kept, **wanted}, missing, lacking)

    @property
    def is_whole(self) -> bool:
        """Whether no measurement is missing."""
        return not (self.missing or self.missing_baselines)

    def counts(self, names: Iterable[str]) -> Counts:
        """Count the pictures, and the pictures that failed entirely or in one of these metrics."""
        statuses = [columns_of(name)[1] for name in names]
        return counted(
            row if row["status"] != "ok" or any(row.get(one) == "error" for one in statuses) else {**row, "error": None}
            for row in self.rows
        )

    def measure(
        self,
        run: Run,
        explainer: Explainer,
        reader: Reader,
        request: RunRequest,
        bar: ProgressBar,
        masks: Masks | None = None,
    ) -> None:
        """Measure the missing metrics, and add their columns to the rows."""
        ours = replace(explainer, metrics=chosen_metrics(self.missing, masks))
        of_baselines = replace(explainer, metrics=chosen_metrics(self.missing_baselines, masks))
        pictures, baselines = dict(_by_picture(self.rows)), dict(_by_picture(self.baselines))
        ready = {path: rows for path, rows in pictures.items() if rows[0]["status"] == "ok"}
        lost = [row for row in self.rows if row["status"] != "ok"]
        mark_unmeasured(lost, ours.metrics)
        bar.add(len(pictures) - len(ready), len(pictures) - len(ready))
        asks = any(metric.needs_masks for metric in (*ours.metrics, *of_baselines.metrics))
        marked = batches(((entry_of(run, path), False) for path in ready), request.batch_size)
        for items in reader.read(marked, ahead_of(request.batch_size, request.threads)):
            checked = [_unchanged(one, ready[one.entry.key][0]) for one in items]
            readable = [one for one in checked if isinstance(one, Decoded)]
            where = {one.entry.key: _mask_of(one, masks) for one in readable} if masks is not None and asks else {}
            _measure_batch(ours, checked, ready, where)
            _measure_batch(of_baselines, checked, baselines, where, baselines=True)
            bar.add(len(items), sum(ready[one.entry.key][0]["error"] is not None for one in items))

    def write(self, run: Run) -> None:
        """Write all measurements of the shard."""
        fields = [*KEYS, *metric_fields(self.settings)]
        run.store.write_metrics(self.number, [*self.rows, *self.baselines], fields, self.settings)


def _by_picture(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    return ((path, list(own)) for path, own in groupby(rows, lambda row: str(row["path"])))


def _lacks_masks(metric: str, rows: Iterable[Row]) -> bool:
    """Whether a metric needs masks, and failed earlier for some explained pictures, perhaps for lack of a mask."""
    status = columns_of(metric)[1]
    return METRICS[metric].needs_masks and any(row["status"] == "ok" and row.get(status) == "error" for row in rows)


def _clear_error(row: Row, kept: Iterable[str]) -> None:
    """Remove the error of a row unless it is about the picture, or about a metric whose numbers are kept."""
    if row["status"] == "ok" and not any(row.get(columns_of(name)[1]) == "error" for name in kept):
        row["error"] = None


def _all_have(metric: str, baselines: Sequence[Row]) -> bool:
    return bool(baselines) and all(row.get(columns_of(metric)[1]) is not None for row in baselines)


def _measure_batch(
    explainer: Explainer,
    items: Sequence[Decoded | Failed],
    rows: Mapping[str, list[Row]],
    masks: Mapping[str, Tensor | str],
    baselines: bool = False,
) -> None:
    """Measure the pictures that could be read again; for each other picture, write the reason into its rows.

    If a metric needs masks, `masks` holds the mask of each picture, or the reason why it cannot be used.
    """
    of_maps, of_objects = (
        replace(explainer, metrics=tuple(metric for metric in explainer.metrics if metric.needs_masks is asked))
        for asked in (False, True)
    )
    readable = [one for one in items if isinstance(one, Decoded)]
    if of_maps.metrics:
        for group in _alike(readable):
            of_maps.measure(MeasuredBatch(of_maps.images(group), [rows[one.entry.key] for one in group], baselines))
    if of_objects.metrics:
        where = {key: mask for key, mask in masks.items() if isinstance(mask, Tensor)}
        for group in _alike([one for one in readable if one.entry.key in where]):
            keys = [one.entry.key for one in group]
            placed = torch.stack([where[key] for key in keys])
            of_objects.measure(MeasuredBatch(of_objects.images(group), [rows[key] for key in keys], baselines, placed))
        for key, reason in masks.items():
            if isinstance(reason, str):  # the numbers of other metrics remain valid
                mark_unmeasured(rows[key], of_objects.metrics)
                for row in rows[key]:
                    row["error"] = reason
    if not explainer.metrics:
        return
    for one in items:
        if isinstance(one, Failed):
            own = rows[one.entry.key]
            mark_unmeasured(own, explainer.metrics)
            for row in own:
                row.update(status="error", error=one.reason)


def _mask_of(one: Decoded, masks: Masks) -> Tensor | str:
    """Return the mask of a picture, or the reason why it is missing or cannot be used."""
    try:
        return torch.from_numpy(masks.of(one.entry.key, one.size, one.box, one.shape))
    except PictureError as error:
        return Failed.because(one.entry, error).reason


def _alike(ready: Sequence[Decoded]) -> Iterator[list[Decoded]]:
    """Yield groups of neighboring pictures whose images have the same size."""
    for _, group in groupby(ready, lambda one: one.shape):
        yield list(group)


def _unchanged(one: Decoded | Failed, row: Row) -> Decoded | Failed:
    """Return the picture, or a failure if its size has changed since it was explained."""
    before = row["picture_height"], row["picture_width"]
    if isinstance(one, Decoded) and one.size != before:
        now = f"{one.size[1]} x {one.size[0]}"
        return Failed.because(
            one.entry,
            PictureError(f"the picture was {before[1]} x {before[0]} when it was explained, and is {now} now"),
        )
    return one


def entry_of(run: Run, key: str) -> Entry:
    """Return the entry of a key, with the path of its picture at the time of the run."""
    return Entry(key, run.path_of(key))
