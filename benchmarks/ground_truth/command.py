"""`python -m benchmarks ground-truth`: write the table, its JSON, and its figure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.ground_truth import (
    conclusions,
    demo,
    objects,
    photographs,
    reading,
    series,
    shortcut,
    table,
    tokens,
    wired,
)
from benchmarks.ground_truth.figure import draw
from benchmarks.ground_truth.scoring import OPTIONS, Column, Found, Plan, Test
from benchmarks.ground_truth.stored import UnsupportedError
from benchmarks.ground_truth.uncertainty import differences
from benchmarks.options import Quick, Threads
from benchmarks.report import between_markers
from benchmarks.results import RESULTS, ROOT, as_json, environment
from gradcam_kit import METHODS
from gradcam_kit.errors import MissingExtraError, did_you_mean

TESTS: tuple[Test, ...] = (
    *wired.TESTS, *objects.TESTS, *demo.TESTS, *shortcut.TESTS, *tokens.TESTS, *series.TESTS, *photographs.TESTS
)  # fmt: skip
_QUICK = Plan(("balanced-cam", "grad-cam", "hires-cam", "eigen-cam", "attention-rollout"), scale=0.1, networks=2)
_FIGURE = ROOT / "docs" / "ground-truth.png"
_MARKERS = [f"<!-- {side}: python -m benchmarks ground-truth -->" for side in ("begin", "end")]
_OF_CONCLUSIONS = [f"<!-- {side}: conclusions of python -m benchmarks ground-truth -->" for side in ("begin", "end")]


def run(
    quick: Quick = False,
    only: Annotated[list[str] | None, typer.Option(help="name of a test; can be repeated; default: all")] = None,
    method: Annotated[list[str] | None, typer.Option(help="name of a method; can be repeated; default: all")] = None,
    networks: Annotated[int | None, typer.Option(help="number of trained networks per column", min=1)] = None,
    seed: Annotated[int, typer.Option(help="seed of images, networks and intervals")] = 0,
    threads: Threads = 1,
    processes: Annotated[int, typer.Option(help="number of parallel processes; 0 = one per core", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="path of the JSON; stored files stay as they are")] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="path of the figure (.png), next to which its table is written (.md); stored files stay as they are"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace files that this command did not write")
    ] = False,
) -> None:
    """Test where each method finds the right answer, and where it fails, on networks and data whose answer is known.

    Networks are trained several times, and each training is one observation in intervals and tests.

    A full run rewrites what is stored in this checkout:
    benchmarks/results/ground-truth.json, docs/ground-truth.md and .png,
    and the tables and conclusions between the markers in
    docs/where-right.md.

    With --out, the command writes only this JSON, and with --figure only this
    figure and its table. With --quick, --only, --method, fewer --networks than
    by default, or another --seed, nothing is written unless --out or --figure
    is given. The command prints the name of each file that it writes.
    """
    plan = replace(_QUICK if quick else Plan(), seed=seed)
    plan = replace(plan, methods=tuple(method)) if method else plan
    plan = replace(plan, networks=networks) if networks else plan
    chosen = _chosen(only)
    for name in set(method or ()) - set(METHODS):
        raise typer.BadParameter(f"there is no method {name!r}{did_you_mean(name, METHODS)}")
    if not overwrite:
        _check_own(out, figure)
    console = Console()
    begin = time.perf_counter()
    columns, seconds, unavailable = _columns(chosen, plan, threads, processes, console)
    cells = table.cells_of(columns, seed)
    tested = differences({name: column.scores for name, column in columns.items()}, conclusions.pairs(), seed)
    for part in table.on_screen(cells):
        console.print(part)
    wall = round(time.perf_counter() - begin, 1)
    console.print(f"{wall} s ({sum(seconds.values()):.0f} s of processor time in tests); pairs tested: {len(tested)}")
    fewer = plan.networks < Plan().networks
    stored = not (quick or only or method or fewer or seed or out or figure)
    if stored:
        out, figure = RESULTS / "ground-truth.json", _FIGURE
    results = {
        "command": "ground-truth",
        "environment": environment("cpu", seed=seed, quick=quick, options=OPTIONS, networks=plan.networks),
        "wall_seconds": wall,
        "cpu_seconds": seconds,
        "tests": {test.name: {"question": test.question, "score": test.score} for test in chosen},
        "unavailable": unavailable,
        "columns": table.records(columns, cells),
        "pairs": table.pair_records(tested),
    }
    if out:
        _write(out, as_json(results), console)
    if figure:
        _draw(figure, results, console)
    if stored:
        _rewrite_page(results, console)


def rewrite() -> None:
    """Rewrite the pages of ground-truth from its stored JSON, without measuring again.

    Run this after changing how the figure, the tables or the conclusions are
    worded or shown.
    """
    console, results = Console(), json.loads((RESULTS / "ground-truth.json").read_text())
    _draw(_FIGURE, results, console)
    _rewrite_page(results, console)


def _draw(figure: Path, results: Mapping[str, Any], console: Console) -> None:
    """Write the figure, and next to it the page with the full table."""
    draw(reading.cells(results), figure)
    console.print(f"written to {figure}", soft_wrap=True)
    _write(figure.with_suffix(".md"), page_of(results), console)


def page_of(results: Mapping[str, Any]) -> str:
    """Return the text of docs/ground-truth.md, the page with the full table."""
    return table.page(
        reading.cells(results),
        reading.columns(results),
        results["tests"],
        reading.pairs(results),
        networks=results["environment"]["networks"],
    )


def tables_of(results: Mapping[str, Any]) -> str:
    """Return the tables of docs/where-right.md."""
    return table.blocks(reading.cells(results), reading.columns(results))


def _rewrite_page(results: Mapping[str, Any], console: Console) -> None:
    """Write tables and conclusions to their page; keep the old conclusions if the numbers do not support a new one."""
    page = ROOT / "docs" / "where-right.md"
    text = between_markers(page.read_text(), tables_of(results), *_MARKERS)
    try:
        text = between_markers(text, conclusions.text(results), *_OF_CONCLUSIONS)
    except UnsupportedError as error:
        console.print(f"the conclusions of {page} are kept, because one no longer holds: {error}", soft_wrap=True)
    _write(page, text, console)


def _chosen(only: Sequence[str] | None) -> list[Test]:
    unknown = set(only or ()) - {test.name for test in TESTS}
    if unknown:
        raise typer.BadParameter(f"unknown tests {sorted(unknown)}; known are {[test.name for test in TESTS]}")
    return [test for test in TESTS if not only or test.name in only]


@dataclass(frozen=True)
class _Task:
    """Tests that share a network, and the plan with its seed."""

    tests: Sequence[str]
    plan: Plan
    threads: int


@dataclass(frozen=True)
class _Done:
    """The columns of a task's tests, the processor time of each test in seconds, and why tests could not run."""

    columns: dict[str, Found]
    seconds: dict[str, float]
    unavailable: dict[str, str]


def _columns(
    chosen: Sequence[Test], plan: Plan, threads: int, processes: int, console: Console
) -> tuple[dict[str, Column], dict[str, float], dict[str, str]]:
    """Run the chosen tests on every network of the plan; return columns in the order of the tests."""
    groups: dict[str, list[Test]] = {}
    for test in chosen:
        groups.setdefault(test.group or test.name, []).append(test)
    tasks = [
        _Task([test.name for test in tests], plan.of_network(number), threads)
        for number in range(plan.networks)
        for tests in groups.values()
        if number == 0 or tests[0].has_networks
    ]
    found: dict[str, list[Found]] = {}
    seconds: dict[str, float] = {test.name: 0.0 for test in chosen}
    unavailable: dict[str, str] = {}
    workers = min(len(tasks), processes or os.cpu_count() or 1)
    for task, done in zip(tasks, _all_done(tasks, workers), strict=True):
        for name, one in done.columns.items():
            found.setdefault(name, []).append(one)
        for name, own in done.seconds.items():
            seconds[name] = round(seconds[name] + own, 1)
        unavailable |= done.unavailable
        spent = ", ".join(f"{name} {own} s" for name, own in done.seconds.items())
        console.print(f"seed {task.plan.seed}: {spent}")
    for name, reason in unavailable.items():
        console.print(f"left out: {name}: {reason}")
    ordered = sorted(found, key=lambda name: table.place_of(name))
    return {name: Column.of(found[name]) for name in ordered}, seconds, unavailable


def _all_done(tasks: Sequence[_Task], workers: int) -> Iterator[_Done]:
    """Yield results in the order of the tasks, computed in parallel processes unless `workers` is 1."""
    if workers == 1:
        yield from map(_done, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_done, tasks)


def _done(task: _Task) -> _Done:
    """Run the tests of a task."""
    torch.set_num_threads(task.threads)
    by_name: Mapping[str, Callable[[Plan], Mapping[str, Found]]] = {test.name: test.run for test in TESTS}
    done = _Done({}, {}, {})
    for name in task.tests:
        start = time.process_time()
        try:
            done.columns.update(by_name[name](task.plan))
        except MissingExtraError as error:
            done.unavailable[name] = str(error)
        done.seconds[name] = round(time.process_time() - start, 1)
    return done


def _check_own(out: Path | None, figure: Path | None) -> None:
    """Raise an error if a file exists that this command did not write; a figure is judged by the table next to it."""
    table_of_figure = None if figure is None else figure.with_suffix(".md")
    marks = {out: '"command": "ground-truth"', figure: None, table_of_figure: "`python -m benchmarks ground-truth`"}
    for path, mark in marks.items():
        if path is None or not path.exists():
            continue
        told = path if mark else table_of_figure
        text = told.read_text(errors="replace") if told is not None and told.is_file() else ""
        if (mark or "`python -m benchmarks ground-truth`") not in text:
            raise typer.BadParameter(f"{path} exists, and this command did not write it; add --overwrite to replace it")


def _write(path: Path, text: str, console: Console) -> None:
    """Write a file and print its name, so that users see which files changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    console.print(f"written to {path}", soft_wrap=True)
