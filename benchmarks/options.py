"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

Rounds = Annotated[int, typer.Option(help="number of repetitions of each measurement", min=1)]
Threads = Annotated[int, typer.Option(help="number of torch threads", min=1)]
Limit = Annotated[float, typer.Option(help="time limit of one call in seconds; a longer call is skipped")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if available")]
Out = Annotated[Path | None, typer.Option(help="path of the JSON file; default: in benchmarks/results")]
Quick = Annotated[bool, typer.Option("--quick", help="run a minimal case as a check; stored only with --out")]


def device_of(device: str) -> str:
    """Return "cpu" or "cuda" for a device option; `record` skips CUDA if it is not available.

    Raises:
        typer.BadParameter: an unknown device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"unknown device {device!r}; expected auto, cpu or cuda")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
