"""`python -m benchmarks ratios`: prints a table and, with --out, writes the figures as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import ground_truth
from benchmarks import ratios as cases
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
    timed = {**cases.resnet50(batch, rounds), **({} if quick else cases.score_cam(min(rounds, 3)))}
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


app.command("ground-truth")(ground_truth.run)

if __name__ == "__main__":
    app()
