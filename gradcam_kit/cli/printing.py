"""Print results and messages to the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from gradcam_kit.pages import open_page

if TYPE_CHECKING:
    from gradcam_kit.jobs import Evaluation, RunSummary


_IN_ROWS = ", listed in the table of gradcam-kit export DIR --to csv"


def say(text: str, err: bool = True) -> None:
    """Write a line to the terminal; characters that cannot be encoded as UTF-8 are escaped."""
    typer.echo(text.encode("utf-8", "backslashreplace").decode(), err=err)


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to the standard output."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # do not wrap lines that are piped or saved
    console.print(table)


def show_page(page: str | Path) -> None:
    """Open a page in the browser, or say where it is."""
    problem = open_page(page)
    if problem is not None:
        say(problem)


def mark(holds: bool) -> str:
    """Return the text of a table cell for a property: "yes" if it holds, else ""."""
    return "yes" if holds else ""


def finish(summary: RunSummary, rest: str = _IN_ROWS, page: str | Path | None = None) -> None:
    """Show the summary of a run or a comparison, and exit with its status.

    Args:
        summary: summary of a run or a comparison.
        rest: where to find the failures that are not shown, as the end of a sentence.
        page: page to open in the browser, unless the command was interrupted; None = open nothing.
    """
    if summary.means:
        show_means(summary.means, summary.notes)
    _say_problems(summary.problems, summary.failed, rest)
    before = f" ({summary.before} of them before)" if summary.before else ""
    say(
        f"{summary.explained} of {summary.asked} pictures explained{before} in {summary.seconds:.1f} s: {summary.out}",
        err=False,
    )
    same = "the same command without --overwrite" if summary.go_on == "without --overwrite" else "the same command"
    if summary.interrupted and not summary.go_on:
        say("interrupted before anything was explained. No run was started; run the same command to start it.")
    elif summary.interrupted:
        say(f"interrupted, {summary.left} pictures left. Run {same} to resume.")
    elif summary.missing:
        say(f"missing shards: {summary.missing}. Other parts write them; if no other part runs, run {same} to resume.")
    if summary.report is not None:
        say(f"Report: {summary.report}", err=False)
    if page is not None and not summary.interrupted:
        show_page(page)
    raise typer.Exit(summary.exit_status)


def show_means(lines: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> None:
    """Show the mean of each method and metric with its number of heatmaps, and notes."""
    from gradcam_kit.jobs.work.measuring import by_method, not_counted

    rows = by_method(lines)
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    show(
        ["method", *(f"{metric} (count)" for metric in metrics)],
        [[method, *(_mean(own.get(metric)) for metric in metrics)] for method, own in rows.items()],
    )
    for note in [*not_counted(lines), *notes]:
        say(note, err=False)


def _mean(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return ""
    return f"{'-' if line['mean'] is None else format(line['mean'], '.4g')} ({line['count']:,})"


def show_agreement(lines: Sequence[Mapping[str, Any]]) -> None:
    """Show how similarly metrics rank methods and baselines: 1 = in the same order, -1 = in the opposite order."""
    if not lines:
        return
    say(
        "rank agreement of metrics on methods and baselines, mean over pictures; reliability: agreement between "
        "pictures",
        err=False,
    )
    metrics = [str(line["metric"]) for line in lines]
    rows = [
        [name, *(_rounded(line[other]) for other in (*metrics, "reliability"))]
        for name, line in zip(metrics, lines, strict=True)
    ]
    show(["metric", *metrics, "reliability"], rows)


def _rounded(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.2f}"


def note_unfinished(directory: str) -> None:
    """Show how many pictures are left if a run is not finished."""
    from gradcam_kit.jobs import load_run

    run = load_run(directory)
    if run.left:
        left = f"{run.left} of {run.manifest['pictures']} pictures are left"
        say(f"note: the run is not finished: {left}. Run its command again to resume")


def finish_evaluation(done: Evaluation) -> None:
    """Show the results of an evaluation, and exit with its status."""
    show_means(done.means, done.notes)
    show_agreement(done.agreement)
    _say_problems(done.problems, done.failed)
    before = f" ({done.before} of them before)" if done.before else ""
    say(f"{done.measured} of {done.pictures} pictures measured{before} in {done.seconds:.1f} s", err=False)
    raise typer.Exit(done.exit_status)


def _say_problems(problems: Sequence[str], failed: int, rest: str = _IN_ROWS) -> None:
    for problem in problems:
        line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in problem)
        say(f"failed: {line}")  # on one line and without control characters, which a file name may contain
    if failed > len(problems):
        say(f"failed: {failed - len(problems)} more{rest}")
