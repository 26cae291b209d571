"""The command `demo`: six quick methods on photographs, or all methods on the bundled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gradcam_kit.cli.options import OUTPUT, Open, ReplaceForeign
from gradcam_kit.cli.printing import say, show, show_page

if TYPE_CHECKING:
    from gradcam_kit.jobs.demos.every import DemoResult
    from gradcam_kit.jobs.demos.page import DemoPage


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the page.", rich_help_panel=OUTPUT)
    ] = Path("gradcam-demo"),
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Run every method on eight bundled pictures, and show which methods find the objects. Takes minutes.",
        ),
    ] = False,
    browse: Open = False,
    overwrite: ReplaceForeign = False,
) -> None:
    """Explain three photographs with six methods, and write a page with the heatmaps and their cost."""
    if every:
        from gradcam_kit.jobs.demos.every import run_demo

        done = run_demo(out, Console(stderr=True), overwrite)
        _finish_all(done)
        shown = done.sheet
    else:
        from gradcam_kit.jobs.demos.page import make_demo_page

        page = make_demo_page(out, Console(stderr=True), overwrite)
        _finish_page(page)
        shown = page.page
    if browse:
        show_page(shown)


def _finish_page(done: DemoPage) -> None:
    """Show the cost of the methods, what is missing, the path of the page, and next steps."""
    rows = [[one.title, one.good_for, f"{one.passes:.1f}", f"{one.seconds:.2f}"] for one in done.methods]
    show(["method", "good for", "passes", "seconds"], rows)
    say("passes: cost for both classes of a picture, in forward passes; seconds: time for all pictures", err=False)
    if done.missing is not None:
        say(f"Using the bundled model and pictures, not photographs: {done.missing}", err=False)
    say(f"The page: {done.page}", err=False)
    say(f"Next: gradcam-kit run PICTURES --model {done.model} --out DIR --open", err=False)
    say("      gradcam-kit models resnet      (other models)", err=False)
    say("      gradcam-kit demo --all         (every method)", err=False)


def _finish_all(done: DemoResult) -> None:
    """Show which methods find the objects, and where the pictures are."""
    show(
        ["method", "heatmap on the object", "seconds"],
        [[row.name, f"{row.share:.1%}", "" if row.seconds is None else f"{row.seconds:.2f}"] for row in done.rows],
    )
    say(
        "Guided methods come first because they highlight edges, and most edges of these pictures belong to the "
        "object. They depend less on the class than the other methods do.",
        err=False,
    )
    say(f"Not for this convolutional classifier: {', '.join(done.unsuited)}", err=False)
    say(f"Side by side: {done.sheet}\nOne by one:   {done.overlays}", err=False)
    say("Next: gradcam-kit run PICTURES --model torchvision:resnet50 --weights DEFAULT --out DIR", err=False)
