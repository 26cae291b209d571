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
from gradcam_kit.cli.serving import open_app

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Where did the model look? Class activation maps for PyTorch, from one picture to a data set.",
    epilog="Exit status: 0 all done, 1 some pictures failed, 2 invalid arguments or input, 130 interrupted.",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("gradcam-demo"),
    overwrite: ReplaceForeign = False,
) -> None:
    """Explain eight bundled pictures with every method, and measure which methods find the object."""
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
    out: Annotated[str, typer.Option(help="Folder of the run. Run the same command again to resume.")],
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
        str | None,
        typer.Option(
            help="Device such as cpu, cuda:1 or mps, or several: cuda:0,cuda:1. By default all GPUs, else the CPU."
        ),
    ] = None,
    dtype: Dtype = "float32",
    compile: Compile = False,  # noqa: A002
    overlays: Annotated[str, typer.Option(help="Pictures that get overlays: all, none, or a number.")] = "all",
    thumbnails: Annotated[int, typer.Option(help="Thumbnails for the report, of evenly spaced pictures.")] = 10_000,
    shard_size: Annotated[int, typer.Option(help="Pictures per file of rows.")] = 1000,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do only part I of N, counted from 0. All parts share one --out.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where to run: local, or ray (the cluster of RAY_ADDRESS, or a new local one).")
    ] = "local",
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    class_names: ClassNames = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    retry_failed: RetryFailed = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.")] = False,
    report: Annotated[bool, typer.Option(help="Write OUT/report.html at the end.")] = True,
) -> None:
    """Explain every picture of SOURCE: heatmaps to OUT/shards, pictures to OUT/overlays, a page to OUT/report.html."""
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
    """Rebuild DIR/report.html from the rows in DIR."""
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
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of the run, if they have moved.")] = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier measurements.")] = False,
    baselines: Annotated[
        bool, typer.Option(help="Also score four model-independent baselines; each takes as long as a method.")
    ] = True,
    controls: Annotated[bool | None, typer.Option(help="The former name of --baselines.", hidden=True)] = None,
) -> None:
    """Measure the stored heatmaps of a run: rows to DIR/metrics, and the mean of each method."""
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
    out: Annotated[str | None, typer.Option(help="Output folder.", show_default="DIR/export/FORMAT")] = None,
    method: Method = None,
    threshold: Annotated[
        float, typer.Option(help="For boxes (coco): share of the maximum above which a heatmap counts.")
    ] = 0.5,
    overwrite: ReplaceForeign = False,
) -> None:
    """Export a run for other programs: FiftyOne heatmaps, COCO boxes, gray PNGs, arrays, or a table."""
    from gradcam_kit.jobs.export import export_run

    wanted = tuple(method or ())
    say(export_run(directory, to, out, methods=wanted, threshold=threshold, overwrite=overwrite), err=False)
    note_unfinished(directory)


@app.command()
def compare(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Pictures, folders or globs.")],
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Show methods side by side; by default all single-pass methods that suit the model."""
    from gradcam_kit.jobs.compare import SheetRequest, render_sheet

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
    finish(render_sheet(request, Console(stderr=True)), rest="")


for listed in (doctor, layers, methods, metrics):
    app.command()(listed)
app.command("app")(open_app)


def main() -> None:
    """Run the command line."""
    app()
