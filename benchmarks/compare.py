"""What changed between two files of results: medians side by side, and whether they differ by more than the spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.results import Figure, Results, load

_HARDWARE = ("processor", "cores", "device", "threads")
_SAME = 0.02
"""Changes below this share are none, also of figures that were measured once and have no spread."""


@dataclass(frozen=True)
class Change:
    """One figure in two files; None where a file lacks it."""

    case: str
    figure: str
    old: Figure | None
    new: Figure | None

    @property
    def ratio(self) -> float:
        """New median / old median."""
        assert self.old is not None
        assert self.new is not None
        return self.new.median / self.old.median if self.old.median else float("inf" if self.new.median else 1)

    @property
    def mark(self) -> str:
        """Which way the figure moved beyond the spread of both files; empty if it did not."""
        if self.old is None or self.new is None:
            return "gone" if self.new is None else "new"
        if abs(self.ratio - 1) < _SAME:
            return ""
        return "up" if self.new.low > self.old.high else "down" if self.new.high < self.old.low else ""


def run(
    old: Annotated[Path, typer.Argument(help="results as a command stored them", exists=True, dir_okay=False)],
    new: Annotated[Path, typer.Argument(help="results of the same command", exists=True, dir_okay=False)],
    everything: Annotated[bool, typer.Option("--all", help="also what stayed within the spread")] = False,
) -> None:
    """What changed between two files of results; a change is marked where the quartiles do not overlap."""
    try:
        first, second = load(old), load(new)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected what a command such as `methods` stored") from error
    if first.command != second.command:
        raise typer.BadParameter(f"{old} is of `{first.command}`, {new} of `{second.command}`; expected one command")
    console = Console()
    for name in different_hardware(first, second):
        values = first.environment.get(name), second.environment.get(name)
        console.print(f"[bold]{name} differs:[/] {values[0]} and {values[1]}; times cannot be compared, ratios may be")
    found = list(changes(first, second))
    shown = found if everything else [change for change in found if change.mark]
    table = Table("case", "figure", "old", "new", "new / old", "beyond the spread")
    for change in shown:
        both = change.old is not None and change.new is not None
        ratio = f"{change.ratio:.2f}" if both else ""
        table.add_row(change.case, change.figure, str(change.old or ""), str(change.new or ""), ratio, change.mark)
    console.print(table)
    within = sum(not change.mark for change in found)
    console.print(f"{len(found)} figures, {within} within the spread")


def different_hardware(old: Results, new: Results) -> list[str]:
    """What times depend on and differs."""
    return [name for name in _HARDWARE if old.environment.get(name) != new.environment.get(name)]


def changes(old: Results, new: Results) -> Iterator[Change]:
    """Every figure of every case of either file."""
    before, after = figures(old), figures(new)
    for key in dict.fromkeys([*before, *after]):
        yield Change(*key, before.get(key), after.get(key))


def figures(results: Results) -> dict[tuple[str, str], Figure]:
    """The figures by case and name."""
    return {(row.key, name): figure for row in results.rows for name, figure in row.figures.items()}
