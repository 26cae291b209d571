"""`python -m benchmarks support`: test which architectures work with default settings, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import support as matrix
from benchmarks.support_outcomes import load, save, summarize


def run(
    only: Annotated[str, typer.Option(help="regular expression that the names must match, such as '^timm:vit'")] = "",
    workers: Annotated[int, typer.Option(help="number of parallel processes")] = 1,
    threads: Annotated[int, typer.Option(help="number of torch threads per process")] = 1,
    seconds: Annotated[float, typer.Option(help="time limit for one architecture")] = 600,
    parameters: Annotated[float, typer.Option(help="largest model to try, in millions of parameters")] = 150,
    out: Annotated[
        Path | None, typer.Option(help="JSON file in which the rows of these architectures are added or replaced")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="test only architectures that the JSON file lacks")] = False,
    quick: Annotated[bool, typer.Option(help="test only three architectures, as a quick check")] = False,
) -> None:
    """Test which architectures work with default settings, one by one."""
    torch.set_num_threads(threads)
    console = Console()
    chosen = matrix.chosen_cases(only, quick)
    if new and out:
        chosen = [case for case in chosen if case.name not in load(out)]
    outcomes = []
    for one in matrix.run(chosen, workers, seconds, round(parameters * 1e6)):
        outcomes.append(one)
        shape = "x".join(map(str, one.shape))
        line = f"{one.status:8} {one.name}  {one.layer} {shape}  {one.seconds:.1f} s  {one.reason}"
        console.print(line, markup=False, soft_wrap=True)
        if out:
            save([one], out)  # saved at once, so that an interrupted run can be resumed with --new
    groups = summarize(outcomes)
    table = Table("architectures", *(statuses := ("ok", "refused", "failed", "left out")))
    for group, counts in groups.items():
        table.add_row(group, *(str(counts.get(status, 0)) for status in statuses))
    console.print(table)
    if any(one.status == "failed" for one in outcomes):
        raise typer.Exit(1)
