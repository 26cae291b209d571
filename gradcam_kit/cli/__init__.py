"""The command line: arguments become one call, its result becomes a few lines and an exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradcam_kit.cli.diagnosis import doctor
from gradcam_kit.cli.lists import layers, methods, metrics
from gradcam_kit.cli.options import (
    BatchSize,
    Checkpoint,
    ClassNames,
    Compile,
    Device,
    Directory,
    Dtype,
    GradientRule,
    ImageSize,
    Layer,
    MaskFolder,
    Mean,
    Method,
    MethodOfRun,
    Metrics,
    Model,
    ModelOfRun,
    ReplaceForeign,
    RetryFailed,
    Scores,
    Std,
    Targets,
    Weights,
    Workers,
    numbers,
    overlay_count,
)
from gradcam_kit.cli.printing import Commands, finish, finish_demo, finish_evaluation, note_unfinished, say

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Where did the model look? Class activation maps for PyTorch, from one picture to a data set.",
    epilog="Exit status: 0 all done, 1 some pictures failed, 2 the request was wrong, 130 interrupted.",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("gradcam-demo"),
    overwrite: ReplaceForeign = False,
) -> None:
    """Explain eight bundled pictures with every method, and measure which of them find the object."""
    from gradcam_kit.jobs.demo import DemoRow, run_demo

    def finished(row: DemoRow) -> None:
        say(f"{row.name}: {row.seconds:.2f} s")

    finish_demo(run_demo(out, finished, overwrite))


@app.command()
def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A picture, a folder (with all below it), a glob, a list file (.txt, one path on a line), or a table "
            "(.csv, .tsv, .parquet) with a column 'path' and perhaps 'label'; also on remote storage, such as s3://...",
        ),
    ],
    model: Model,
    out: Annotated[str, typer.Option(help="Folder of the run; the same command again goes on with what is missing.")],
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    method: Method = None,
    layer: Layer = None,
    metric: Metrics = None,
    targets: Targets = "predicted",
    scores: Scores = None,
    gradient_rule: GradientRule = "exact",
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu, cuda:1, mps, or several: cuda:0,cuda:1. All GPUs if there are any.")
    ] = None,
    dtype: Dtype = "float32",
    compile: Compile = False,  # noqa: A002
    overlays: Annotated[str, typer.Option(help="all, none, or the number of pictures that get them.")] = "all",
    thumbnails: Annotated[
        int, typer.Option(help="Pictures that are kept small for the report, evenly spread.")
    ] = 10_000,
    shard_size: Annotated[int, typer.Option(help="Pictures in one file of rows.")] = 1000,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do only part I of N, counted from 0; all parts share one --out.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: on a Ray cluster (RAY_ADDRESS) or a new local one.")
    ] = "local",
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    class_names: ClassNames = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in --out.")] = False,
    retry_failed: RetryFailed = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.")] = False,
    report: Annotated[bool, typer.Option(help="Write OUT/report.html at the end.")] = True,
) -> None:
    """Explain every picture of SOURCE: rows with heatmaps in OUT/shards, pictures in OUT/overlays, OUT/report.html."""
    from gradcam_kit.folder import measured, run_and_report
    from gradcam_kit.jobs import RunRequest

    request = RunRequest(
        model=model,
        checkpoint=checkpoint,
        weights=weights,
        image_size=image_size,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        class_names=class_names,
        device=device,
        dtype=dtype,
        layers=tuple(layer or ()),
        targets=targets,
        scores=scores,
        gradient_rule=gradient_rule,
        batch_size=batch_size,
        source=source,
        out=out,
        methods=tuple(method or ["grad-cam"]),
        metrics=tuple(metric or ()),
        workers=workers,
        overlays=overlay_count(overlays),
        thumbnails=thumbnails,
        shard_size=shard_size,
        part=(0, 1) if shard is None else RunRequest.parse_part(shard),
        engine=engine,
        overwrite=overwrite,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        compile=compile,
        report=report,
        processes=True,
    )
    summary = run_and_report(request, Console(stderr=True))
    finish(measured(summary) if metric and not summary.interrupted else summary)


@app.command()
def report(directory: Directory, overwrite: ReplaceForeign = False) -> None:
    """Write DIR/report.html again, from what is in DIR."""
    from gradcam_kit.report import write_report

    say(write_report(directory, overwrite=overwrite), err=False)
    note_unfinished(directory)


@app.command()
def evaluate(
    directory: Directory,
    model: ModelOfRun = None,
    method: MethodOfRun = None,
    metric: Metrics = None,
    masks: MaskFolder = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Where the weights of the run are now, if moved.")] = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was measured before.")] = False,
    baselines: Annotated[
        bool, typer.Option(help="Measure maps that know nothing of the model too; each takes as long as a method.")
    ] = True,
    controls: Annotated[bool | None, typer.Option(help="The former name of --baselines.", hidden=True)] = None,
) -> None:
    """Measure the heatmaps of a run: rows in DIR/metrics, and the mean of each method."""
    from gradcam_kit.jobs import EvaluateRequest
    from gradcam_kit.jobs import evaluate as measure_run

    if controls is not None:
        say("--controls and --no-controls are now called --baselines and --no-baselines")
    request = EvaluateRequest(
        directory,
        model=model,
        methods=tuple(method or ()),
        metrics=tuple(metric or ()),
        masks=masks,
        checkpoint=checkpoint,
        batch_size=batch_size,
        workers=workers,
        device=device,
        overwrite=overwrite,
        baselines=baselines if controls is None else controls,
        processes=True,
    )
    done = measure_run(request, Console(stderr=True))
    note_unfinished(directory)
    finish_evaluation(done)


@app.command()
def export(
    directory: Directory,
    to: Annotated[str, typer.Option(help="fiftyone, coco, png, npz or csv.")],
    out: Annotated[str | None, typer.Option(help="Where it goes; DIR/export/FORMAT if not said.")] = None,
    method: Method = None,
    threshold: Annotated[
        float, typer.Option(help="For boxes (coco): the share of the largest value above which a heatmap counts.")
    ] = 0.5,
    overwrite: ReplaceForeign = False,
) -> None:
    """Write what other programs read: FiftyOne heatmaps, COCO boxes, gray PNGs, arrays, or a table."""
    from gradcam_kit.jobs.export import export_run

    wanted = tuple(method or ())
    say(export_run(directory, to, out, methods=wanted, threshold=threshold, overwrite=overwrite), err=False)
    note_unfinished(directory)


@app.command()
def compare(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Pictures; folders and globs work too.")],
    model: Model,
    out: Annotated[
        Path, typer.Option(help="The file to write: .png, .jpg, ..., .html (a page with a slider) or .csv.")
    ],
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    method: Method = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Layer to compare at; A+B fuses two. By default one is chosen. Can be repeated."),
    ] = None,
    metric: Metrics = None,
    masks: MaskFolder = None,
    targets: Targets = "predicted",
    scores: Scores = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = "float32",
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    class_names: ClassNames = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Show methods side by side; without --method all that need a single pass and suit the model."""
    from gradcam_kit.jobs.compare import SheetRequest, draw_sheet

    request = SheetRequest(
        model=model,
        checkpoint=checkpoint,
        weights=weights,
        image_size=image_size,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        class_names=class_names,
        device=device,
        dtype=dtype,
        layers=tuple(layer or ()),
        targets=targets,
        scores=scores,
        batch_size=batch_size,
        sources=tuple(pictures),
        out=out,
        methods=tuple(method or ()),
        metrics=tuple(metric or ()),
        masks=masks,
        overwrite=overwrite,
    )
    finish(draw_sheet(request, Console(stderr=True)), rest="")


for listed in (doctor, layers, methods, metrics):
    app.command()(listed)


def main() -> None:
    """Run the command line."""
    app()
