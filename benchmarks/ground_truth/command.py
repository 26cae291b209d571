"""`python -m benchmarks ground-truth`: the table, its JSON, and its figure."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.ground_truth import series, shapes, shortcut, table, tokens, wired
from benchmarks.ground_truth.scoring import OPTIONS, Found, Plan, Test
from benchmarks.options import Quick, Threads
from benchmarks.report import between_markers
from benchmarks.results import RESULTS, ROOT, as_json, environment
from gradcam_kit import METHODS
from gradcam_kit.errors import did_you_mean

TESTS: tuple[Test, ...] = (*wired.TESTS, *shapes.TESTS, *shortcut.TESTS, *tokens.TESTS, *series.TESTS)
_QUICK = Plan(("grad-cam", "hires-cam", "eigen-cam", "attention-rollout"), scale=0.1)
_FIGURE = ROOT / "docs" / "ground-truth.png"
_MARKERS = [f"<!-- {side}: python -m benchmarks ground-truth -->" for side in ("begin", "end")]


def run(
    quick: Quick = False,
    only: Annotated[list[str] | None, typer.Option(help="names of tests; default: all")] = None,
    method: Annotated[list[str] | None, typer.Option(help="names of methods; default: all")] = None,
    seed: Annotated[int, typer.Option(help="of images, networks and intervals")] = 0,
    threads: Threads = 1,
    out: Annotated[Path | None, typer.Option(help="where the JSON goes instead, and nothing else is rewritten")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="where the figure (.png) goes instead, with the table (.md) beside it; likewise")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that this did not write")] = False,
) -> None:
    """Where each method finds the right answer, and where it fails, on networks and data whose answer is known.

    A whole run rewrites what is stored in this checkout:
    benchmarks/results/ground-truth.json, docs/ground-truth.md and .png,
    and the table between the markers in docs/where-right.md.

    With --out or --figure it writes those alone. With --quick, --only,
    --method or another --seed nothing is written unless one of the two
    says where. Each file is named when it is written.
    """
    torch.set_num_threads(threads)
    plan = replace(_QUICK if quick else Plan(), seed=seed)
    plan = replace(plan, methods=method) if method else plan
    chosen = [test for test in TESTS if not only or test.name in only]
    unknown = set(only or ()) - {test.name for test in TESTS}
    if unknown:
        raise typer.BadParameter(f"no test {sorted(unknown)}; known are {[test.name for test in TESTS]}")
    for name in set(method or ()) - set(METHODS):
        raise typer.BadParameter(f"there is no method {name!r}{did_you_mean(name, METHODS)}")
    if not overwrite:
        _check_own(out, figure)
    console = Console()
    columns: dict[str, Found] = {}
    seconds: dict[str, float] = {}
    for test in chosen:
        start = time.process_time()
        columns |= test.run(plan)
        seconds[test.name] = round(time.process_time() - start, 1)
        console.print(f"{test.name}: {seconds[test.name]} s")
    cells = table.cells_of(columns, seed)
    for part in table.on_screen(cells):
        console.print(part)
    stored = not (quick or only or method or seed or out or figure)
    if stored:
        out, figure = RESULTS / "ground-truth.json", _FIGURE
    if out:
        results = {
            "command": "ground-truth",
            "environment": environment("cpu", seed=seed, quick=quick, options=OPTIONS),
            "cpu_seconds": seconds,
            "tests": {test.name: {"question": test.question, "score": test.score} for test in chosen},
            "columns": table.records(columns, cells),
        }
        _write(out, as_json(results), console)
    if figure:
        table.draw(cells, figure)
        console.print(f"written to {figure}", soft_wrap=True)
        _write(figure.with_suffix(".md"), table.page(cells, chosen), console)
    if stored:
        page = ROOT / "docs" / "where-right.md"
        block = table.markdown(cells, table.SHOWN, interval=False)
        _write(page, between_markers(page.read_text(), block, *_MARKERS), console)


def _check_own(out: Path | None, figure: Path | None) -> None:
    """Refuse to replace files of others; a figure is one of this command's if the table beside it is."""
    table_of_figure = None if figure is None else figure.with_suffix(".md")
    marks = {out: '"command": "ground-truth"', figure: None, table_of_figure: "`python -m benchmarks ground-truth`"}
    for path, mark in marks.items():
        if path is None or not path.exists():
            continue
        told = path if mark else table_of_figure
        text = told.read_text(errors="replace") if told is not None and told.is_file() else ""
        if (mark or "`python -m benchmarks ground-truth`") not in text:
            raise typer.BadParameter(f"{path} is there already, and this command did not write it; add --overwrite")


def _write(path: Path, text: str, console: Console) -> None:
    """Write a file and say so: whoever runs this shall know what changed, without asking git."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    console.print(f"written to {path}", soft_wrap=True)
