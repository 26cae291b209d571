"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradcam_kit.cli.options import (
    OUTPUT,
    BatchSize,
    Checkpoint,
    ClassNames,
    ComparedLayer,
    Device,
    Dtype,
    ImageSize,
    MaskFolder,
    Mean,
    Methods,
    Metrics,
    Model,
    Open,
    Scores,
    Std,
    Targets,
    Weights,
    numbers,
)
from gradcam_kit.cli.printing import finish


def compare(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Pictures, folders or globs.")],
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The file to write: .png, .jpg, ..., .html (a page with a slider) or .csv.",
            rich_help_panel=OUTPUT,
        ),
    ],
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    method: Methods = None,
    layer: ComparedLayer = None,
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
    browse: Open = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.", rich_help_panel=OUTPUT)
    ] = False,
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
    finish(render_sheet(request, Console(stderr=True)), rest="", page=out if browse else None)
