"""Render the table of methods and tests as a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.ground_truth.scoring import is_deletion
from benchmarks.ground_truth.table import Cells, rows_of, text
from gradcam_kit.metrics import BASELINES


def draw(cells: Cells, path: Path) -> None:
    """Plot the table; blue is better and red is worse than the chance level of the column (a map of ones).

    Deletion, where lower is better, is shown only in the table.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    cells = {name: column for name, column in cells.items() if not is_deletion(name)}
    rows, columns = rows_of(cells), list(cells)
    values = np.full((len(rows), len(columns)), np.nan)
    for j, column in enumerate(columns):
        chance = cells[column]["ones"].mean if "ones" in cells[column] else 0.0
        for i, row in enumerate(rows):
            cell = cells[column].get(row)
            if cell is not None:
                # Give a cell whose maps are all empty the color of the chance level.
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
