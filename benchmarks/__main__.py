"""`python -m benchmarks ratios`: prints a table and, with --out, writes the figures as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import ratios as cases
from benchmarks import support as matrix
from benchmarks.measure import Ratio, as_json, environment

app = typer.Typer(help="Benchmarks that anyone can rerun.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Benchmarks that anyone can rerun."""


@app.command()
def ratios(
    rounds: Annotated[int, typer.Option(help="rounds of interleaved runs")] = 7,
    batch: Annotated[int, typer.Option(help="images in a batch")] = 16,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 2,
    out: Annotated[Path | None, typer.Option(help="where the JSON goes")] = None,
    quick: Annotated[bool, typer.Option(help="one round of one image, to see that it works")] = False,
) -> None:
    """What a heatmap costs beside a plain forward pass."""
    torch.set_num_threads(threads)
    if quick:
        rounds, batch = 1, 1
    timed = {
        **cases.resnet50(batch, rounds),
        **({} if quick else cases.replay(rounds) | cases.score_cam(min(rounds, 3))),
    }
    megabytes = {} if quick else cases.memory()
    seconds = {} if quick else cases.imports(3)
    table = Table("work", "seconds", "ratio", "quartiles")
    for name, one in timed.items():
        table.add_row(name, f"{one.seconds:.3f}", f"{one.ratio:.2f}", f"{one.low:.2f} to {one.high:.2f}")
    console = Console()
    console.print(table)
    for name, value in megabytes.items():
        console.print(f"peak memory growth, {name}: {value:.0f} MB")
    for name, value in seconds.items():
        console.print(f"import {name}: {value:.2f} s")
    if out:
        figures: dict[str, dict[str, Ratio] | dict[str, float] | dict[str, object]] = {
            "environment": {**environment(), "batch": batch, "rounds": rounds},
            "time": timed,
            "peak_memory_growth_mb": megabytes,
            "import_seconds": seconds,
        }
        out.write_text(as_json(figures))


@app.command()
def support(
    only: Annotated[str, typer.Option(help="regular expression that the names must match, such as '^timm:vit'")] = "",
    workers: Annotated[int, typer.Option(help="processes side by side")] = 1,
    threads: Annotated[int, typer.Option(help="threads of torch in each process")] = 1,
    seconds: Annotated[float, typer.Option(help="the most time for one architecture")] = 600,
    parameters: Annotated[float, typer.Option(help="the largest model to try, in million parameters")] = 150,
    out: Annotated[Path | None, typer.Option(help="JSON whose rows of these architectures are replaced")] = None,
    new: Annotated[bool, typer.Option("--new", help="only architectures that the JSON does not have yet")] = False,
    quick: Annotated[bool, typer.Option(help="three architectures, to see that it works")] = False,
) -> None:
    """Which architectures are explained without any setting, one by one."""
    torch.set_num_threads(threads)
    console = Console()
    chosen = matrix.chosen_cases(only, quick)
    if new and out:
        chosen = [case for case in chosen if case.name not in matrix.load(out)]
    outcomes = []
    for one in matrix.run(chosen, workers, seconds, round(parameters * 1e6)):
        outcomes.append(one)
        shape = "x".join(map(str, one.shape))
        line = f"{one.status:8} {one.name}  {one.layer} {shape}  {one.seconds:.1f} s  {one.reason}"
        console.print(line, markup=False, soft_wrap=True)
        if out:
            matrix.save([one], out)  # at once, so that an interrupted run can be taken up with --new
    groups = matrix.summarize(outcomes)
    table = Table("architectures", *(statuses := ("ok", "refused", "failed", "left out")))
    for group, counts in groups.items():
        table.add_row(group, *(str(counts.get(status, 0)) for status in statuses))
    console.print(table)
    if any(one.status == "failed" for one in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
