"""Evaluate an existing run: read its pictures again, measure the stored heatmaps, report the means."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from gradcam_kit.errors import InputError, OptionError, exits_refused
from gradcam_kit.jobs.asked import request_of
from gradcam_kit.jobs.engines.devices import with_layers
from gradcam_kit.jobs.measured_shard import MeasuredShard, entry_of
from gradcam_kit.jobs.progress import ProgressBar
from gradcam_kit.jobs.request import SHOWN, RunRequest, Targets
from gradcam_kit.jobs.results import Run, load_run
from gradcam_kit.jobs.sources.masks import Masks
from gradcam_kit.jobs.sources.reading import decoders_quiet
from gradcam_kit.jobs.storage.counts import Counts
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import TRIED, metric_settings, note
from gradcam_kit.jobs.work.measuring import MetricMeans, chosen_metrics
from gradcam_kit.jobs.work.paired_numbers import PairedNumbers
from gradcam_kit.jobs.work.reader import Reader
from gradcam_kit.models.checkpoints import weights_hash
from gradcam_kit.renamed import former_arguments

DEFAULT_METRICS = ("average-drop", "average-increase", "average-gain", "adcc-complexity")
"""The default metrics, which together need two forward passes per heatmap.

Complexity is among them, because a heatmap of ones, which explains nothing, also has a low average drop.
"""


@former_arguments(controls="baselines")
@dataclass(frozen=True)
class EvaluateRequest:
    """The options of `evaluate`.

    Attributes:
        directory: the folder of the run.
        metrics: names in `metrics.METRICS`; empty = `DEFAULT_METRICS`.
        masks: a folder of masks, see `Masks`, for metrics that compare heatmaps with objects.
        model: the model of the run, as a module or a specification; None = the model that `run.json` names. A model
            from a Python module must be given, because for safety, modules that only `run.json` names are not imported.
        methods: user-defined methods of the run, in the form `package.module:Class`. They must be given, because for
            safety, classes that only `run.json` names are not imported.
        transform: the transform for a `model` that is a module without a transform.
        checkpoint: the path of the weights; None = their path at the time of the run.
        device: the device, as for `RunRequest`.
        batch_size: the largest number of images in one forward pass.
        workers: number of workers that decode pictures; 0 = one per core, at most 8.
        overwrite: replace earlier measurements.
        baselines: also measure all `metrics.BASELINES` on the same pictures; each takes as long as a method, except the
            random baseline, which is drawn `RANDOM_DRAWS` times. The former name `controls` is accepted for one
            release.
        processes: decode pictures in processes, as for `RunRequest`.
    """

    directory: str
    metrics: tuple[str, ...] = ()
    masks: str | None = None
    model: nn.Module | str | None = None
    methods: tuple[str, ...] = ()
    transform: Any = None
    checkpoint: Path | None = None
    device: str | None = None
    batch_size: int = 32
    workers: int = 0
    overwrite: bool = False
    baselines: bool = True
    processes: bool = False


@dataclass
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        out: the folder of the run.
        means: one dict per method and metric, see `MetricMeans.lines`.
        notes: for each metric, the better direction and all settings of its numbers; then the lines of `differences`.
        differences: one line per metric and pair of methods, see `pair_lines`.
        pictures: the number of pictures in the complete shards of the run.
        failed: number of pictures for which a metric could not be computed, including pictures that the run could not
            explain.
        problems: the first few failures, one line each.
        before: number of pictures in shards whose measurements were complete before the call.
        seconds: duration of the call.
        agreement: one dict per metric, which tells how similarly this metric and each other metric rank methods and
            baselines, and how consistent its ranking is from picture to picture, see `RankAgreement`. Empty if fewer
            than two metrics have a better direction, or if these metrics have fewer than three methods and baselines in
            common.
    """

    out: str
    means: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    pictures: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    before: int = 0
    seconds: float = 0.0
    agreement: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """The exit status: 0 = all measured, 1 = some pictures failed."""
        return int(self.failed > 0)

    @property
    def measured(self) -> int:
        """The number of pictures without a failure."""
        return self.pictures - self.failed

    def add(self, counts: Counts) -> None:
        """Add the counts of a shard."""
        self.pictures += counts.pictures
        self.failed += counts.failed
        self.problems = [*self.problems, *counts.problems][:SHOWN]


@exits_refused()
def evaluate(request: EvaluateRequest, console: Console | None = None) -> Evaluation:
    """Measure the heatmaps in all complete shards, except those already measured, and write one file for each shard.

    Args:
        request: what to measure.
        console: terminal on which progress is shown; None = nowhere.

    Raises:
        GradCamKitError: the request is invalid, or the model differs from the model of the run.
    """
    start = time.monotonic()
    console = console or Console(quiet=True)
    with decoders_quiet():
        prepared = _prepare(request, console)
        done = _measure(prepared, console)
    done.notes = [metric.describe(prepared.settings[metric.name]) for metric in prepared.explainer.metrics]
    done.notes += done.differences
    done.seconds = time.monotonic() - start
    return done


@dataclass(frozen=True)
class _Prepared:
    """A run with its model loaded.

    Attributes:
        asked: the request that rebuilds the model and its methods.
        complete: the counts of each complete shard, by its number.
        settings: the settings of each metric.
    """

    request: EvaluateRequest
    run: Run
    asked: RunRequest
    explainer: Explainer
    masks: Masks | None
    complete: Mapping[int, Counts]
    settings: Mapping[str, Any]


def _prepare(request: EvaluateRequest, console: Console) -> _Prepared:
    """Check the request, and load the model of the run.

    Raises:
        GradCamKitError: the request is invalid, or the model differs from the model of the run.
    """
    masks = None if request.masks is None else Masks(request.masks)
    metrics = chosen_metrics(request.metrics or DEFAULT_METRICS, masks)
    run = load_run(request.directory)
    complete = dict(sorted(run.store.complete().items()))
    if not complete:
        raise OptionError(
            f"the run in {request.directory!r} has no complete shard yet; run its command again to resume"
        )
    if not request.overwrite:
        run.store.check_metrics(complete)
    asked = request_of(run, request)
    explainer = replace(with_layers(asked, run.manifest["layers"]), metrics=metrics, say=partial(note, console))
    if masks is not None:
        masks.check(explainer.loaded.transform)
    _check_model(explainer, run, request)
    if masks is not None and any(metric.needs_masks for metric in metrics):
        _check_names(masks, run, complete)
    rows = (row for number in complete for row in run.store.read_shard(number, ["path", "status"]))
    entries = (entry_of(run, row["path"]) for row in rows if row["status"] == "ok")
    settings = metric_settings(explainer, entries, Targets.parse(run.manifest["targets"]), masks)
    return _Prepared(request, run, asked, explainer, masks, complete, settings)


def _measure(prepared: _Prepared, console: Console) -> Evaluation:
    """Measure every shard that is not measured yet."""
    request, run, explainer = prepared.request, prepared.run, prepared.explainer
    names = [metric.name for metric in explainer.metrics]
    paired = PairedNumbers({metric.name: metric.better for metric in explainer.metrics})
    means, done = MetricMeans(), Evaluation(request.directory)
    total = sum(counts.pictures for counts in prepared.complete.values())
    reader = Reader(explainer.loaded.transform, prepared.asked.threads, total, request.processes)
    with reader, explainer.ready(), ProgressBar(console, total, "measuring") as bar:
        for number in prepared.complete:
            shard = MeasuredShard.read(run, number, prepared.settings, request.baselines, request.overwrite)
            if shard.is_whole:
                counts = shard.counts(names)
                done.before += counts.pictures
                bar.add(counts.pictures, counts.failed)
            else:
                shard.measure(run, explainer, reader, prepared.asked, bar, prepared.masks)
                shard.write(run)
            done.add(shard.counts(names))
            rows = [*shard.rows, *(shard.baselines if request.baselines else ())]
            means.add(rows, names)
            paired.add(rows)
    done.means, done.differences, done.agreement = means.lines(), paired.lines(), paired.agreement()
    return done


def _check_names(masks: Masks, run: Run, numbers: Iterable[int]) -> None:
    """Refuse a folder of masks if it holds the pictures themselves, or masks for none of the first pictures."""
    rows = (row for number in numbers for row in run.store.read_shard(number, ["path"]))
    keys = list(dict.fromkeys(str(row["path"]) for row in islice(rows, TRIED)))
    masks.check_pictures(entry_of(run, key) for key in keys)
    if keys and not any(map(masks.has, keys)):
        raise InputError(
            f"{masks.folder!r} has no mask for the first pictures ({len(keys)} checked); expected names such as "
            f"{os.path.splitext(keys[0])[0]}.png"
        )


def _check_model(explainer: Explainer, run: Run, request: EvaluateRequest) -> None:
    """Refuse to score with a model other than the one that made the heatmaps."""
    now = {
        "weights_sha256": weights_hash(explainer.loaded.model),
        "transform": json.loads(json.dumps(explainer.loaded.transform.describe())),
    }
    for name, value in now.items():
        if value != run.manifest[name]:
            raise OptionError(
                f"the {name} of {explainer.loaded.spec} differs from the one in run.json of {request.directory!r}, "
                "so this model cannot measure the heatmaps; give the same model (its weights with "
                "--checkpoint), or run again"
            )
