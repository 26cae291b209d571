"""Metrics of a run that is there: pictures are read again, the stored heatmaps are measured, and means are told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from torch import nn

from gradcam_kit.checkpoints import weights_hash
from gradcam_kit.errors import OptionError, PictureError
from gradcam_kit.jobs.decode import Decoded, Failed, Reader, ahead_of, batches
from gradcam_kit.jobs.devices import with_layers
from gradcam_kit.jobs.explainer import Explainer
from gradcam_kit.jobs.index import Entry
from gradcam_kit.jobs.measuring import MetricMeans, chosen_metrics, columns_of, mark_unmeasured, metric_fields
from gradcam_kit.jobs.progress import ProgressBar
from gradcam_kit.jobs.reading import decoders_quiet
from gradcam_kit.jobs.request import SHOWN, RunRequest, Targets
from gradcam_kit.jobs.results import Run, load_run
from gradcam_kit.jobs.rows import Row
from gradcam_kit.jobs.setup import metric_settings, note
from gradcam_kit.jobs.store import Counts, counted

DEFAULT_METRICS = ("average-drop", "average-increase", "average-gain", "adcc-complexity")
"""Two forward passes for each heatmap, and how much of the picture is lit, which a low drop has to be paid with."""

KEYS = (
    pa.field("path", pa.string(), nullable=False),
    pa.field("method", pa.string(), nullable=False),
    pa.field("rank", pa.int32()),
    pa.field("target", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
)
"""The first columns of `metrics/NNNNN.parquet`, whose rows are those of the shard with this number, in its order."""


@dataclass(frozen=True)
class EvaluateRequest:
    """What is to be measured of a run.

    Attributes:
        directory: the folder of the run.
        metrics: names in `metrics.METRICS`; none = `DEFAULT_METRICS`.
        model: that of the run, if it was made from a module; None = as `run.json` says.
        transform: of such a module, if it carries none.
        checkpoint: where the weights are now; None = where they were.
        device: as in a run.
        batch_size: the most images in one forward pass.
        workers: how many read pictures; 0 = one per core, at most 8.
        overwrite: replace what was measured before.
        processes: as in a run.
    """

    directory: str
    metrics: tuple[str, ...] = ()
    model: nn.Module | None = None
    transform: Any = None
    checkpoint: Path | None = None
    device: str | None = None
    batch_size: int = 32
    workers: int = 0
    overwrite: bool = False
    processes: bool = False


@dataclass
class Evaluation:
    """What became of the pictures of a run.

    Attributes:
        means: one line per method and metric, see `MetricMeans.lines`.
        notes: of each metric which way is better, and all settings that its numbers depend on.
        pictures: all of the run.
        failed: pictures that could not be measured, be it because the run could not explain them.
        problems: the first few of them, one line each.
        before: pictures that had been measured before.
    """

    out: str
    means: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    before: int = 0
    seconds: float = 0.0

    @property
    def exit_status(self) -> int:
        """0 = all measured, 1 = some pictures failed."""
        return int(self.failed > 0)

    @property
    def measured(self) -> int:
        """Pictures without a failure."""
        return self.pictures - self.failed

    def add(self, counts: Counts) -> None:
        """Count the pictures of a shard."""
        self.pictures += counts.pictures
        self.failed += counts.failed
        self.problems = [*self.problems, *counts.problems][:SHOWN]


def evaluate(request: EvaluateRequest, console: Console | None = None) -> Evaluation:
    """Measure the heatmaps of all complete shards that are not measured yet; one file of rows for each shard.

    Args:
        request: what is asked for.
        console: where the progress is shown on a terminal; None = nowhere.

    Raises:
        GradCamKitError: the request is wrong, or the model is not that of the run.
    """
    start = time.monotonic()
    console = console or Console(quiet=True)
    names = tuple(dict.fromkeys(request.metrics or DEFAULT_METRICS))
    metrics = chosen_metrics(names)
    run = load_run(request.directory)
    there = run.store.complete()
    numbers = sorted(there)
    if not numbers:
        raise OptionError(f"the run in {request.directory!r} has no complete shard yet; let the same command go on")
    own, layers = _request_of(run, request), run.manifest["layers"]
    with decoders_quiet():
        explainer = replace(with_layers(own, layers), metrics=metrics)
        explainer.fit.say = lambda text: note(console, text)
        _check_model(explainer, run, request)
        first = (row for number in numbers for row in run.store.read_shard(number, ["path", "status"]))
        entries = (_entry(run, row["path"]) for row in first if row["status"] == "ok")
        settings = metric_settings(explainer, entries, Targets.parse(run.manifest["targets"]))
        means, done = MetricMeans(), Evaluation(request.directory)
        total = sum(counts.pictures for counts in there.values())
        reader = Reader(explainer.loaded.transform, own.threads, total, request.processes)
        with reader, explainer.ready(), ProgressBar(console, total, "measuring") as bar:
            for number in numbers:
                shard = _Shard.read(run, number, settings, request.overwrite)
                if shard.missing:
                    shard.measure(run, replace(explainer, metrics=chosen_metrics(shard.missing)), reader, own, bar)
                    shard.write(run)
                counts = counted(shard.rows)
                if not shard.missing:
                    done.before += counts.pictures
                    bar.add(counts.pictures, counts.failed)
                done.add(counts)
                means.add(shard.rows, names)
    done.means, done.notes = means.lines(), [metric.describe(settings[metric.name]) for metric in metrics]
    done.seconds = time.monotonic() - start
    return done


@dataclass
class _Shard:
    """The rows of a shard with what is measured of them; `missing` are the metrics that are not."""

    number: int
    rows: list[Row]
    settings: dict[str, Any]
    missing: list[str]

    @classmethod
    def read(cls, run: Run, number: int, settings: Mapping[str, Any], overwrite: bool) -> _Shard:
        """What is there of a shard: measured by `evaluate` before, or by the run itself, with the same settings."""
        wanted = json.loads(json.dumps(settings))
        earlier, stored = ([], {}) if overwrite else run.store.read_metrics(number)
        missing = [name for name in wanted if stored.get(name) != wanted[name]]
        if earlier and not missing:
            return cls(number, earlier, stored, [])
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
            if row["status"] == "ok" and not any(row[columns_of(name)[1]] == "error" for name in kept):
                row["error"] = None  # what the run had to say of its overlay
        return cls(number, rows, {**kept, **wanted}, missing)

    def measure(self, run: Run, explainer: Explainer, reader: Reader, request: RunRequest, bar: ProgressBar) -> None:
        """Add the columns that are missing."""
        pictures = {path: list(rows) for path, rows in groupby(self.rows, lambda row: row["path"])}
        ready = {path: rows for path, rows in pictures.items() if rows[0]["status"] == "ok"}
        lost = [row for row in self.rows if row["status"] != "ok"]
        mark_unmeasured(lost, explainer.metrics)
        bar.add(len(pictures) - len(ready), len(pictures) - len(ready))
        marked = batches(((_entry(run, path), False) for path in ready), request.batch_size)
        for items in reader.read(marked, ahead_of(request.batch_size, request.threads)):
            bar.add(len(items), sum(_measure_batch(explainer, items, ready)))

    def write(self, run: Run) -> None:
        """Write all that is measured of the shard."""
        fields = [*KEYS, *metric_fields(self.settings)]
        run.store.write_metrics(self.number, self.rows, fields, self.settings)


def _measure_batch(
    explainer: Explainer, items: Sequence[Decoded | Failed], rows: Mapping[str, list[Row]]
) -> Iterator[bool]:
    """Measure the pictures that could be read again; of each, whether it failed."""
    checked = [_unchanged(one, rows[one.entry.key][0]) for one in items]
    ready = [one for one in checked if isinstance(one, Decoded)]
    for group in _alike(ready):
        explainer.measure(explainer.images(group), [rows[one.entry.key] for one in group])
    for one in checked:
        own = rows[one.entry.key]
        if isinstance(one, Failed):
            mark_unmeasured(own, explainer.metrics)
            for row in own:
                row.update(status="error", error=one.reason)
        yield own[0]["error"] is not None


def _alike(ready: Sequence[Decoded]) -> Iterator[list[Decoded]]:
    """Pictures whose images have the same size, which follow each other."""
    for _, group in groupby(ready, lambda one: tuple(one.image.shape)):
        yield list(group)


def _unchanged(one: Decoded | Failed, row: Row) -> Decoded | Failed:
    """The picture, failed if it is visibly not the one that was explained."""
    before = row["picture_height"], row["picture_width"]
    if isinstance(one, Decoded) and one.size != before:
        now = f"{one.size[1]} x {one.size[0]}"
        return Failed.because(one.entry, PictureError(f"the picture was {before[1]} x {before[0]} and is {now} now"))
    return one


def _entry(run: Run, key: str) -> Entry:
    return Entry(key, run.path_of(key))


def _request_of(run: Run, request: EvaluateRequest) -> RunRequest:
    """What was asked of the run, as far as it makes the model and its methods."""
    manifest = run.manifest
    asked = dict(manifest["about"].get("request", {"model": manifest["model"], "methods": list(manifest["methods"])}))
    if request.model is None and asked["model"] is None:
        raise OptionError(
            f"the run in {request.directory!r} was made from a module ({manifest['model']}), which only a program can "
            "make again: gradcam_kit.jobs.evaluate(EvaluateRequest(directory, model=module))"
        )
    names, checkpoint = asked.get("class_names"), request.checkpoint or asked.get("checkpoint")
    lists = {name: None if asked.get(name) is None else tuple(asked[name]) for name in ("mean", "std")}
    return RunRequest(
        **{
            **asked,
            **lists,
            "model": request.model or asked["model"],
            "class_names": None if names is None else tuple(names),
            "checkpoint": None if checkpoint is None else Path(checkpoint),
            "methods": tuple(asked["methods"]),
        },
        transform=request.transform,
        out=request.directory,
        device=request.device,
        dtype=manifest["dtype"],
        compile=manifest["compile"],
        batch_size=request.batch_size,
        workers=request.workers,
    )


def _check_model(explainer: Explainer, run: Run, request: EvaluateRequest) -> None:
    """Refuse to score with anything but what made the heatmaps."""
    now = {
        "weights_sha256": weights_hash(explainer.loaded.model),
        "transform": json.loads(json.dumps(explainer.loaded.transform.describe())),
    }
    for name, value in now.items():
        if value != run.manifest[name]:
            raise OptionError(
                f"{explainer.loaded.spec} has another {name} now than when the run in {request.directory!r} was made, "
                "so it cannot measure these heatmaps; give the same model (its weights with --checkpoint), or run again"
            )
