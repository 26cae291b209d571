"""The command `app`."""

from __future__ import annotations

from typing import Annotated

import typer

from gradcam_kit.cli.options import MODEL, SERVE, Checkpoint, ClassNames, Device, ImageSize, Mean, Std, Weights, numbers
from gradcam_kit.cli.printing import say


def open_app(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="SPEC",
            help="demo, mobilenet-v2, torchvision:NAME, timm:NAME, hf:NAME or package.module:factory; see "
            "'gradcam-kit models'.",
            show_default="mobilenet-v2 if its weights are installed, else demo",
            rich_help_panel=MODEL,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port to serve on; if it is taken, the next free port is used.", rich_help_panel=SERVE)
    ] = 7860,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    class_names: ClassNames = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = None,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser, if one is available.", rich_help_panel=SERVE)
    ] = False,
    share: Annotated[
        bool,
        typer.Option("--share", help="Also create a public link through Gradio's servers.", rich_help_panel=SERVE),
    ] = False,
) -> None:
    """Explain pictures in the browser: choose a class, methods, a layer and the opacity, and copy the code."""
    from gradcam_kit.app.serving import default_model, serve
    from gradcam_kit.jobs import ModelRequest

    request = ModelRequest(
        model or default_model(say),
        checkpoint=checkpoint,
        weights=weights,
        class_names=class_names,
        image_size=image_size,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        device=device,
    )
    serve(request, port=port, share=share, open_browser=open_browser, say=say)
