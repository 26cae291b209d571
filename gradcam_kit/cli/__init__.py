"""The command line: turn arguments into a call, and its result into a few lines and an exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradcam_kit._version import __version__
from gradcam_kit.cli import completing
from gradcam_kit.cli.command import Command, Commands
from gradcam_kit.cli.comparing import compare
from gradcam_kit.cli.demos import demo
from gradcam_kit.cli.diagnosis import doctor
from gradcam_kit.cli.lists import layers, methods, metrics, models
from gradcam_kit.cli.options import (
    COMPUTE,
    EXPLAIN,
    MODEL,
    OUTPUT,
    BatchSize,
    Checkpoint,
    ClassNames,
    Compile,
    Device,
    Devices,
    Directory,
    Dtype,
    ExportFormat,
    GradientRule,
    ImageSize,
    Layer,
    MaskFolder,
    Mean,
    Method,
    MethodOfRun,
    Methods,
    Metrics,
    Model,
    ModelOfRun,
    Open,
    OutFolder,
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
from gradcam_kit.cli.printing import finish, finish_evaluation, note_unfinished, say, show_page
from gradcam_kit.cli.serving import open_app
from gradcam_kit.errors import OptionError

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Where did the model look? Class activation maps for PyTorch, from one picture to a data set.",
    epilog="Exit status: 0 all done, 1 some pictures failed, 2 invalid arguments or input, 130 interrupted.",
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"gradcam-kit {__version__}", err=False)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Handle the options of the program itself, such as `--version`."""


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A picture, a folder (recursive), a glob, a list file (.txt, one path per line), or a table "
            "(.csv, .tsv, .parquet) with a column 'path' and optionally 'label'; also on remote storage, such as "
            "s3://...",
        ),
    ],
    model: Model,
    out: OutFolder,
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
    device: Devices = None,
    dtype: Dtype = "float32",
    compile: Compile = False,  # noqa: A002
    overlays: Annotated[
        str, typer.Option(help="Pictures that get overlays: all, none, or a number.", rich_help_panel=OUTPUT)
    ] = "all",
    thumbnails: Annotated[
        int,
        typer.Option(help="Number of evenly spaced pictures with a thumbnail in the report.", rich_help_panel=OUTPUT),
    ] = 10_000,
    shard_size: Annotated[int, typer.Option(help="Pictures per shard, a file of rows.", rich_help_panel=OUTPUT)] = 1000,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Run only part I of N, counted from 0. All parts share one --out.",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Where to run: local, or ray (the cluster of RAY_ADDRESS, or a new local one).",
            autocompletion=completing.one_of("local", "ray"),
            rich_help_panel=COMPUTE,
        ),
    ] = "local",
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    class_names: ClassNames = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel=OUTPUT)
    ] = False,
    retry_failed: RetryFailed = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.", rich_help_panel=COMPUTE)
    ] = False,
    report: Annotated[bool, typer.Option(help="Write OUT/report.html at the end.", rich_help_panel=OUTPUT)] = True,
    browse: Open = False,
) -> None:
    """Explain every picture of SOURCE, and write OUT/shards (heatmaps), OUT/overlays (pictures) and OUT/report.html."""
    from gradcam_kit.folder import measured, run_and_report
    from gradcam_kit.jobs import RunRequest

    if browse and not report:
        raise OptionError("--open opens the report, and --no-report leaves it out; use only one of these options")
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
    done = measured(summary) if metric and not summary.interrupted else summary
    finish(done, page=done.report if browse else None)


def report(directory: Directory, browse: Open = False, overwrite: ReplaceForeign = False) -> None:
    """Rebuild DIR/report.html from the rows in DIR."""
    from gradcam_kit.report import write_report

    page = write_report(directory, overwrite=overwrite)
    say(page, err=False)
    note_unfinished(directory)
    if browse:
        show_page(page)


def evaluate(
    directory: Directory,
    model: ModelOfRun = None,
    method: MethodOfRun = None,
    metric: Metrics = None,
    masks: MaskFolder = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Path of the run's weights, if the file has moved.", rich_help_panel=MODEL),
    ] = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier measurements.", rich_help_panel=OUTPUT)
    ] = False,
    baselines: Annotated[
        bool,
        typer.Option(
            help="Also score four model-independent baselines, each as costly as a method (random: five times).",
            rich_help_panel=EXPLAIN,
        ),
    ] = True,
    controls: Annotated[bool | None, typer.Option(help="The former name of --baselines.", hidden=True)] = None,
) -> None:
    """Measure the stored heatmaps of a run; write rows to DIR/metrics, and show the mean of each method."""
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


def export(
    directory: Directory,
    to: ExportFormat,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Output folder.",
            show_default="DIR/export/FORMAT",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    method: Methods = None,
    threshold: Annotated[
        float, typer.Option(help="For boxes (coco): share of the maximum above which positions belong to a box.")
    ] = 0.5,
    overwrite: ReplaceForeign = False,
) -> None:
    """Export a run for other programs: FiftyOne heatmaps, COCO boxes, gray PNGs, arrays, or a table."""
    from gradcam_kit.jobs.export import export_run

    wanted = tuple(method or ())
    say(export_run(directory, to, out, methods=wanted, threshold=threshold, overwrite=overwrite), err=False)
    note_unfinished(directory)


# Example of each command, in the order of the help.
_EXAMPLES: dict[Callable[..., None], str] = {
    demo: "gradcam-kit demo --out gradcam-demo --open",
    run: "gradcam-kit run photos -m mobilenet-v2 -o heatmaps --method grad-cam --method layer-cam --open",
    report: "gradcam-kit report heatmaps --open",
    evaluate: "gradcam-kit evaluate heatmaps --metric deletion --metric insertion",
    export: "gradcam-kit export heatmaps --to csv",
    compare: "gradcam-kit compare cat.jpg -m mobilenet-v2 -o methods.html --targets top:2 --open",
    open_app: "gradcam-kit app -m mobilenet-v2 --open",
    doctor: "gradcam-kit doctor -m torchvision:resnet18 --data photos --steps 20",
    layers: "gradcam-kit layers -m torchvision:resnet50",
    models: "gradcam-kit models 'timm:vit_*224'",
    methods: "gradcam-kit methods",
    metrics: "gradcam-kit metrics",
}
for function, example in _EXAMPLES.items():
    app.command(example.split()[1], cls=Command, epilog=f"Example: {example}")(function)


def main() -> None:
    """Run the command line."""
    app()
