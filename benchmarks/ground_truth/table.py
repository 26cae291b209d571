"""The table methods x tests: as records, on the screen, as Markdown, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.ground_truth.bootstrap import Cell, Difference, summarize
from benchmarks.ground_truth.scoring import DRAWS, OPTIONS, Column, Test
from gradcam_kit.metrics import BASELINES

Cells = dict[str, dict[str, Cell]]
"""Column -> row -> cell."""
DIGITS = 2
GROUPS = {
    "Wired by hand": ("signs", "and", "or", "blind half"),
    "Convolutional networks: objects and a shortcut": (
        "small", "medium", "large", "earlier layer", "two objects", "shortcut", "demo", "demo, layer2",
    ),
    "Mosaics": (
        "GridPG", "GridPG, layer3", "GridPG, layer2", "DiPart", "DiFull", "demo, GridPG", "demo, GridPG, layer3",
        "demo, GridPG, layer2",
    ),
    "Transformers": (
        "transformer", "transformer, two", "transformer, ignored", "transformer, mean", "transformer, windows",
    ),
    "Series": ("series, when", "series, which"),
    "Photographs": ("photographs, share", "photographs, peak"),
}  # fmt: skip
"""Columns that are shown side by side."""


def place_of(column: str) -> int:
    """Where a column stands; one of no group comes last."""
    ordered = [name for names in GROUPS.values() for name in names]
    return ordered.index(column) if column in ordered else len(ordered)


def cells_of(columns: Mapping[str, Column], seed: int) -> Cells:
    """Mean and interval of every row of every column."""
    return {
        name: {row: summarize(scores, seed) for row, scores in column.scores.items()}
        for name, column in columns.items()
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
    share = cell.empty / (cell.n + cell.empty)
    empty = f" ({max(1, round(100 * share))} % empty)" if share else ""
    return f"{mean} [{low}, {high}]{empty}" if interval else f"{mean}{empty}"


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
    "integrated-grad-cam", "finer-cam", "ablation-cam", "score-cam", "recipro-cam", "refine-cam", "eigen-cam",
    "attention-rollout", "grad-eclip", "legrad", "rise", "random-cam", "dcam", *BASELINES,
)  # fmt: skip


def markdown(cells: Cells, rows: Sequence[str] = (), *, interval: bool = True, order: Cells | None = None) -> str:
    """The table, of all rows or of some, in the order of their places in `order`, or in the table itself."""
    columns = list(cells)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows_of(order or cells):
        if (not rows or row in rows) and any(row in cells[column] for column in columns):
            values = [text(cells[column].get(row), interval=interval) for column in columns]
            lines.append(f"| {row} | {' | '.join(values)} |")
    lines.append(f"| *images, networks* | {' | '.join(_sizes(cells[column]) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _sizes(column: Mapping[str, Cell]) -> str:
    """Images of all networks, and the networks."""
    cell = max(column.values(), key=lambda cell: cell.n + cell.empty)
    return f"*{cell.n + cell.empty}, {cell.networks}*"


def grouped(cells: Cells) -> Iterator[tuple[str, Cells]]:
    """Yield the groups of columns that are there; columns of no group come last."""
    for title, names in {**GROUPS, "Others": [name for name in cells if place_of(name) == place_of("")]}.items():
        if own := {name: cells[name] for name in names if name in cells}:
            yield title, own


def blocks(cells: Cells) -> str:
    """The tables that docs/where-right.md shows, one for each group of columns."""
    return "\n".join(
        f"**{title}**\n\n{markdown(own, SHOWN, interval=False, order=cells)}" for title, own in grouped(cells)
    )


def page(cells: Cells, tests: Sequence[Test], pairs: Sequence[Difference]) -> str:
    """The whole table with intervals, the pairs that were tested, and what each test asks."""
    asked = "\n".join(f"| {test.name} | {test.question} | {test.score} |" for test in tests)
    fewer = "; ".join(
        f"`{name}` with {', '.join(f'{option} {value}' for option, value in options.items())}"
        for name, options in OPTIONS.items()
    )
    drawn = " and ".join(f"`{name}` {draws} times" for name, draws in DRAWS.items())
    tables = "\n".join(f"## {title}\n\n{markdown(own, order=cells)}" for title, own in grouped(cells))
    return (
        "# Where methods are right, and where not\n\n"
        "Written by `python -m benchmarks ground-truth`. Mean [95 % interval]: where networks are trained or drawn, "
        "of the cluster bootstrap, which draws networks, then the images of each; else of images alone. "
        "– does not apply, empty: zero everywhere; the share of empty maps stands in brackets and is not in the mean. "
        "The last line of each table has the images of all networks together, and the networks. "
        "Methods that take hundreds of passes saw a third of the images, or a sixth of those of many networks.\n\n"
        f"Slow methods run with less than their defaults: {fewer}. "
        f"What is random alone is drawn several times, {drawn}; an image has the mean of its draws.\n\n"
        f"![The table as a figure](ground-truth.png)\n\n{tables}\n"
        f"{pair_table(pairs)}\n## Tests\n\n| test | what is known | score |\n|---|---|---|\n{asked}\n"
    )


def pair_table(pairs: Sequence[Difference]) -> str:
    """What stands behind the sentences that say better or worse."""
    lines = "\n".join(
        f"| {one.column} | {one.better} | {one.worse} | {one.difference:.2f} [{one.low:.2f}, {one.high:.2f}] "
        f"| {one.p_holm:.2g} | {one.n} | {one.agreeing} of {one.networks} |"
        for one in pairs
    )
    return (
        "## Pairs\n\nDifferences on the same images of the same networks for which both have a map, with the same "
        "bootstrap; p two-sided, corrected by Holm for all pairs of this table.\n\n"
        "| column | of | less that of | difference | p | images | networks that agree |\n"
        f"|---|---|---|---|---|---|---|\n{lines}\n"
    )


def records(columns: Mapping[str, Column], cells: Cells) -> dict[str, Any]:
    """What is stored of each column; what is undefined is null."""
    return {
        column: {
            "scores": {row: _record(cell) for row, cell in rows.items()},
            "by network": {
                row: [_or_none(float(one.nanmean())) for one in scores]
                for row, scores in columns[column].scores.items()
            },
            "skipped": columns[column].skipped,
            "notes": columns[column].notes,
        }
        for column, rows in cells.items()
    }


def pair_records(pairs: Sequence[Difference]) -> list[dict[str, Any]]:
    """What is stored of each pair; what is undefined is null."""
    return [
        {name: _or_none(value) if isinstance(value, float) else value for name, value in vars(one).items()}
        for one in pairs
    ]


def _record(cell: Cell) -> dict[str, Any]:
    return asdict(cell) if cell.n else {"n": 0, "empty": cell.empty, "networks": cell.networks}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


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
    figure, axes = plt.subplots(figsize=(0.62 * len(columns) + 2.2, 0.29 * len(rows) + 2.1), layout="constrained")
    axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cell = cells[column].get(row)
            color = "white" if np.isfinite(values[i, j]) and abs(values[i, j]) > 0.6 else "black"
            axes.text(
                j, i, text(cell, interval=False).partition(" (")[0], ha="center", va="center", fontsize=8, color=color
            )
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", fontsize=9)
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
