"""The table methods x tests: as records, on the screen, as Markdown, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.ground_truth.scoring import OPTIONS, Cell, Found, Test, summarize
from gradcam_kit.metrics import BASELINES

Cells = dict[str, dict[str, Cell]]
"""Column -> row -> cell."""
DIGITS = 2


def cells_of(columns: Mapping[str, Found], seed: int) -> Cells:
    """Mean and interval of every row of every column."""
    return {
        column: {row: summarize(values, seed) for row, values in found.scores.items()}
        for column, found in columns.items()
    }


def rows_of(cells: Cells) -> list[str]:
    """Methods by their mean place in the columns, those that apply to less than half of them last; then baselines.

    Places are those of the numbers as shown, ties by name: the digits behind them differ between machines.
    """
    places: dict[str, list[float]] = {}
    for column in cells.values():
        scored = {
            row: round(cell.mean, DIGITS) if cell.n else float("-inf")
            for row, cell in column.items()
            if row not in BASELINES
        }
        for row, mean in scored.items():
            places.setdefault(row, []).append(sum(other > mean for other in scored.values()) / max(len(scored), 1))
    methods = sorted(
        places, key=lambda row: (2 * len(places[row]) < len(cells), sum(places[row]) / len(places[row]), row)
    )
    return [*methods, *(name for name in BASELINES if any(name in column for column in cells.values()))]


def text(cell: Cell | None, *, interval: bool = True) -> str:
    """A cell as text: "–" where a method does not apply, "empty" where all its maps are zero."""
    if cell is None:
        return "–"
    if not cell.n:
        return "empty"
    # Adding 0 makes a rounded -0.0 positive: the sign of next to nothing differs between machines.
    mean, low, high = (f"{round(number, DIGITS) + 0.0:.{DIGITS}f}" for number in (cell.mean, cell.low, cell.high))
    return f"{mean} [{low}, {high}]" if interval else mean


def on_screen(cells: Cells) -> list[Table]:
    """Tables of a few columns each, so that they fit."""
    columns = list(cells)
    tables = []
    for start in range(0, len(columns), 5):
        some = columns[start : start + 5]
        table = Table("", *some, title="mean [95 % interval]; – does not apply, empty: zero everywhere")
        for row in rows_of(cells):
            table.add_row(row, *(text(cells[column].get(row)) for column in some))
        tables.append(table)
    return tables


# What docs/where-right.md shows: families that differ, dCAM (made for several series), and all baselines.
SHOWN = (
    "balanced-cam", "guided-grad-cam", "hires-cam", "layer-cam", "grad-cam", "xgrad-cam", "grad-cam++",
    "integrated-grad-cam",
    "finer-cam", "ablation-cam", "score-cam", "recipro-cam", "refine-cam", "eigen-cam", "random-cam", "dcam",
    *BASELINES,
)  # fmt: skip


def markdown(cells: Cells, rows: Sequence[str] = (), *, interval: bool = True) -> str:
    """The table, of all rows or of some."""
    columns = list(cells)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows_of(cells):
        if not rows or row in rows:
            values = [text(cells[column].get(row), interval=interval) for column in columns]
            lines.append(f"| {row} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def page(cells: Cells, tests: Sequence[Test]) -> str:
    """The whole table with intervals, and what each test asks."""
    asked = "\n".join(f"| {test.name} | {test.question} | {test.score} |" for test in tests)
    fewer = "; ".join(
        f"`{name}` with {', '.join(f'{option} {value}' for option, value in options.items())}"
        for name, options in OPTIONS.items()
    )
    return (
        "# Where methods are right, and where not\n\n"
        "Written by `python -m benchmarks ground-truth`. Mean [95 % bootstrap interval over the images]; "
        "– does not apply, empty: zero everywhere.\n\n"
        f"Slow methods run with less than their defaults: {fewer}.\n\n"
        f"![The table as a figure](ground-truth.png)\n\n{markdown(cells)}\n"
        f"| test | what is known | score |\n|---|---|---|\n{asked}\n"
    )


def records(columns: Mapping[str, Found], cells: Cells) -> dict[str, Any]:
    """What is stored of each column; what is undefined is null."""
    return {
        column: {
            "scores": {row: asdict(cell) if cell.n else {"n": 0, "empty": cell.empty} for row, cell in rows.items()},
            "skipped": columns[column].skipped,
            "notes": columns[column].notes,
        }
        for column, rows in cells.items()
    }


def draw(cells: Cells, path: Path) -> None:
    """The table as a figure: the darker, the better, relative to the chance level of the column (all ones)."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    rows, columns = rows_of(cells), list(cells)
    values = np.full((len(rows), len(columns)), np.nan)
    for j, column in enumerate(columns):
        chance = cells[column]["ones"].mean if "ones" in cells[column] else 0.0
        for i, row in enumerate(rows):
            cell = cells[column].get(row)
            if cell is not None:
                # An empty map is no better than chance.
                values[i, j] = max(-1.0, (cell.mean - chance) / max(1 - chance, 1e-9)) if cell.n else 0.0
    figure, axes = plt.subplots(figsize=(1.02 * len(columns) + 2.2, 0.29 * len(rows) + 1.9), layout="constrained")
    axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cell = cells[column].get(row)
            color = "white" if np.isfinite(values[i, j]) and abs(values[i, j]) > 0.6 else "black"
            axes.text(j, i, text(cell, interval=False), ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="left", fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.axhline(len(rows) - len([row for row in rows if row in BASELINES]) - 0.5, color="black", linewidth=1.5)
    axes.tick_params(length=0)
    axes.set_xlabel(
        "Mean scores; 1 is right everywhere. White: the chance level of the column, blue better, red worse.\n"
        "– does not apply; empty: zero everywhere. Below the line: baselines that know nothing of a model.",
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
