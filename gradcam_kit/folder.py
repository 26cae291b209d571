"""Do a run and write its report, from the command line or from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from gradcam_kit.jobs import Run, RunRequest, RunSummary, load_run, run
from gradcam_kit.jobs.storage.ownership import check_page
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.report import is_current, write_report
from gradcam_kit.targets.names import read_class_names


def run_and_report(request: RunRequest, console: Console | None = None) -> RunSummary:
    """Do a run, and write its report once all shards are complete, unless the report is up to date.

    Raises:
        GradCamKitError: the request is invalid; the folder is unchanged.
    """
    if request.report and not request.overwrite:
        check_page(Store.at(request.out).folder, "move it, or leave out the report: --no-report")
    summary = run(request, console)
    if not request.report or summary.missing or summary.left or summary.interrupted:
        return summary
    if summary.pictures == summary.before and is_current(summary.out):
        return summary
    page = write_report(summary.out, summary.pictures - summary.before, summary.seconds, request.overwrite)
    return replace(summary, report=page)


def measured(summary: RunSummary) -> RunSummary:
    """Return the summary of a run with the means of its metrics and its notes, read from its folder."""
    run = load_run(summary.out)
    return replace(summary, means=tuple(run.means()), notes=tuple(run.notes))


def explain_folder(
    source: str | Path,
    model: str | nn.Module,
    out: str | Path,
    *,
    methods: str | Sequence[str] = "grad-cam",
    layers: str | Sequence[str] = (),
    metrics: str | Sequence[str] = (),
    targets: str | int = "predicted",
    class_names: Any = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Explain all pictures of a source, as `gradcam-kit run` does. Repeat the call to resume an unfinished run.

    Args:
        source: a picture, a folder, a glob, a list file or a table, local or on remote storage.
        model: a specification such as `torchvision:resnet50`, or any module, which is copied.
        out: the folder of the run.
        methods: one or several names in `METHODS`, or `package.module:Class`.
        layers: names of target layers; empty = chosen automatically, once for all pictures.
        metrics: names in `metrics.METRICS`, measured for every heatmap.
        targets: "predicted", "label" (the class that the picture's folder or table names), a class index or name, or
            "top:K".
        class_names: a file with one name per line, or the names: a sequence, an array, or a mapping from class indices.
        quiet: show neither notes nor progress.
        options: other attributes of `RunRequest`, such as `transform`, `scores` or `overlays`.

    Returns:
        The rows of the run, read lazily. A picture that failed has a row with `status="error"`.

    Raises:
        GradCamKitError: the request is invalid; the folder is unchanged.
        KeyboardInterrupt: the run was interrupted; finished shards remain valid.
    """
    request = RunRequest(
        model=model,
        source=os.fspath(source),
        out=os.fspath(out),
        methods=_names(methods),
        layers=_names(layers),
        metrics=_names(metrics),
        targets=str(targets),
        class_names=None if class_names is None else _file_or_names(class_names),
        **options,
    )
    summary = run_and_report(request, None if quiet else Console(stderr=True))
    if summary.interrupted:
        raise KeyboardInterrupt
    return load_run(summary.out)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple; a single name need not be in a list."""
    return (given,) if isinstance(given, str) else tuple(given)


def _file_or_names(given: Any) -> Path | tuple[str, ...]:
    return Path(given) if isinstance(given, str | Path) else read_class_names(given)
