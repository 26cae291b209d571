"""The command `doctor`, and the display of findings in the terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from gradcam_kit.cli.options import (
    COMPUTE,
    DATA,
    OUTPUT,
    BatchSize,
    Checkpoint,
    ClassNames,
    Device,
    ImageSize,
    Mean,
    Model,
    Open,
    Std,
    Weights,
    numbers,
)
from gradcam_kit.cli.printing import say, show_page

if TYPE_CHECKING:
    from gradcam_kit.diagnostics.findings import Finding
    from gradcam_kit.jobs.doctor import Diagnosis

_STYLES = {"bad": "bold red", "warn": "bold yellow", "note": "bold blue"}
_TITLES = {"bad": "bad", "warn": "to look at", "note": "good to know"}


def doctor(
    model: Model,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Training pictures: a folder with a subfolder per class, a glob, a list file or a table.",
            rich_help_panel=DATA,
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Test pictures in the same forms, to look for leaks.", rich_help_panel=DATA)
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps, on a copy of the model.", rich_help_panel=COMPUTE)] = 20,
    batch_size: BatchSize = 32,
    device: Device = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    class_names: ClassNames = None,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for doctor.html and doctor.json.", rich_help_panel=OUTPUT
        ),
    ] = "gradcam-doctor",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON.", rich_help_panel=OUTPUT)
    ] = False,
    browse: Open = False,
) -> None:
    """Diagnose a model and its data, give advice, and write OUT/doctor.html and OUT/doctor.json."""
    from gradcam_kit.jobs import ModelRequest
    from gradcam_kit.jobs.doctor import DoctorRequest, examine

    asked = ModelRequest(
        model,
        checkpoint=checkpoint,
        weights=weights,
        image_size=image_size,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        class_names=class_names,
        device=device,
        batch_size=batch_size,
    )
    request = DoctorRequest(asked, data, test, steps, batch_size, out)
    done = examine(request, Console(stderr=True))
    finish_diagnosis(done, as_json, browse)


def finish_diagnosis(done: Diagnosis, as_json: bool, browse: bool = False) -> None:
    """Show findings and skipped checks, open the page if requested, and exit with the exit status of the diagnosis."""
    if browse:
        show_page(done.page)
    if as_json:
        say(done.to_json(), err=False)
        raise typer.Exit(done.exit_status)
    console = Console(highlight=False)
    for finding in done.findings:
        console.print(_text(finding), soft_wrap=not console.is_terminal)
    for what, why in done.skipped:
        say(_printable(f"not examined: {what}: {why}"), err=False)
    counts: Counter[str] = Counter(finding.level for finding in done.findings)
    found = ", ".join(f"{counts[level]} {title}" for level, title in _TITLES.items())
    say(f"{found if done.findings else 'nothing wrong was found'}; the page: {done.page}", err=False)
    raise typer.Exit(done.exit_status)


def _text(finding: Finding) -> Text:
    """Return a finding in two lines, with its level in color."""
    first, *rest = str(finding).splitlines()
    level, _, message = first.partition(" ")
    text = Text(level, style=_STYLES[finding.level]).append(f" {_printable(message)}", style="not bold default")
    return text.append("".join(f"\n     {_printable(line.strip())}" for line in rest), style="dim not bold")


def _printable(line: str) -> str:
    """Escape the control characters in a text, which a file name may contain."""
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)
    return shown.encode("utf-8", "backslashreplace").decode()
