"""The table of methods and tests as records, on the screen, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from benchmarks.ground_truth.scoring import DELETION, DRAWS, OPTIONS, SURE, TRUTHS, Column, is_deletion
from benchmarks.ground_truth.uncertainty import FEWEST, Cell, Difference, per_picture, summarize
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
    "Transformers: deletion, lower is better": tuple(
        f"transformer{family}{DELETION}" for family in ("", ", mean", ", windows")
    ),
    "Series": ("series, when", "series, which"),
    "Photographs": ("photographs, share", "photographs, peak"),
}  # fmt: skip
"""Groups of columns that are shown side by side."""


def place_of(column: str) -> int:
    """Return the position of a column; columns outside all groups come last."""
    ordered = [name for names in GROUPS.values() for name in names]
    return ordered.index(column) if column in ordered else len(ordered)


def cells_of(columns: Mapping[str, Column], seed: int) -> Cells:
    """Return mean and interval of every row of every column."""
    return {
        name: {row: summarize(scores, seed) for row, scores in column.scores.items()}
        for name, column in columns.items()
    }


def rows_of(cells: Cells) -> list[str]:
    """Return methods by their mean rank in the columns, then the true masks and the baselines.

    Methods that apply to fewer than half of the columns come last among the methods. Ranks are computed from the
    rounded numbers, with ties broken by name, because further digits differ between machines. Deletion columns are
    ignored, because the truth is among their rows.
    """
    places: dict[str, list[float]] = {}
    shares = [column for name, column in cells.items() if not is_deletion(name)]
    for column in shares:
        scored = {
            row: round(cell.mean, DIGITS) if cell.n else float("-inf")
            for row, cell in column.items()
            if row not in BASELINES
        }
        for row, mean in scored.items():
            places.setdefault(row, []).append(sum(other > mean for other in scored.values()) / max(len(scored), 1))
    methods = sorted(
        places, key=lambda row: (2 * len(places[row]) < len(shares), sum(places[row]) / len(places[row]), row)
    )
    return [*methods, *(name for name in (*TRUTHS, *BASELINES) if any(name in column for column in cells.values()))]


def text(cell: Cell | None, *, interval: bool = True, pictures: int = 0) -> str:
    """Return a cell as text: "–" where a method does not apply, "empty" where all its maps are zero.

    Args:
        cell: the cell of one row.
        interval: show the interval, if there is one.
        pictures: number of pictures of the column; a row with fewer pictures states their number.

    Returns:
        The mean, with its interval and remarks in brackets.
    """
    if cell is None:
        return "–"
    if not cell.n:
        return "empty"
    seen = cell.n + cell.empty
    asides = [f"n = {seen}"] if seen < pictures else []
    if cell.empty_maps:
        asides.append(f"{max(1, round(100 * cell.empty_maps))} % empty")
    aside = f" ({', '.join(asides)})" if asides else ""
    # Adding 0 turns a rounded -0.0 into 0.0: the sign of tiny values differs between machines.
    mean, low, high = (f"{round(number, DIGITS) + 0.0:.{DIGITS}f}" for number in (cell.mean, cell.low, cell.high))
    return f"{mean} [{low}, {high}]{aside}" if interval and not math.isnan(cell.low) else f"{mean}{aside}"


def on_screen(cells: Cells) -> list[Table]:
    """Return tables of a few columns each, so that they fit on the screen."""
    columns = list(cells)
    tables = []
    for start in range(0, len(columns), 5):
        some = columns[start : start + 5]
        table = Table("", *some, title="mean [95 % interval]; – does not apply, empty: zero everywhere")
        for row in rows_of(cells):
            table.add_row(row, *(text(cells[column].get(row), pictures=_pictures(cells[column])) for column in some))
        tables.append(table)
    return tables


# rows of docs/where-right.md: methods of different families, dCAM (for several series), true masks and baselines
SHOWN = (
    "balanced-cam", "guided-grad-cam", "hires-cam", "layer-cam", "grad-cam", "xgrad-cam", "grad-cam++",
    "integrated-grad-cam", "finer-cam", "ablation-cam", "score-cam", "recipro-cam", "refine-cam", "eigen-cam",
    "attention-rollout", "grad-eclip", "legrad", "rise", "random-cam", "dcam", *TRUTHS, *BASELINES,
)  # fmt: skip


def markdown(
    cells: Cells,
    rows: Sequence[str] = (),
    *,
    interval: bool = True,
    order: Cells | None = None,
    found: Mapping[str, Column] | None = None,
) -> str:
    """Return the table as Markdown, with all rows or some, ordered by `order` or by the table itself.

    If `found` is given, the last line states the accuracy of the networks.
    """
    columns = list(cells)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows_of(order or cells):
        if (not rows or row in rows) and any(row in cells[column] for column in columns):
            values = [
                text(cells[column].get(row), interval=interval, pictures=_pictures(cells[column])) for column in columns
            ]
            lines.append(f"| {row} | {' | '.join(values)} |")
    left_out = {name: len(column.left_out) for name, column in (found or {}).items()}
    sizes = [_sizes(cells[column], left_out.get(column, 0)) for column in columns]
    lines.append(f"| *pictures, networks* | {' | '.join(sizes)} |")
    if found:
        lines.append(f"| *accuracy* | {' | '.join(_accuracy(found[column]) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _pictures(column: Mapping[str, Cell]) -> int:
    """Return the number of pictures of rows that saw all pictures."""
    return max(cell.n + cell.empty for cell in column.values())


def _sizes(column: Mapping[str, Cell], left_out: int) -> str:
    """Return the number of pictures of all included networks, and the number of these networks."""
    networks = next(iter(column.values())).networks
    return f"*{_pictures(column)}, {networks}{f' of {networks + left_out}' if left_out else ''}*"


def _accuracy(column: Column) -> str:
    """Return the ranges of accuracy of the included networks and of those left out."""
    spans = ["–".join(sorted({f"{min(own):.2f}", f"{max(own):.2f}"})) if own else ""
             for own in (column.accuracies, column.accuracies_left_out)]  # fmt: skip
    return f"*{spans[0] or '–'}{f' (left out: {spans[1]})' if spans[1] else ''}*"


def grouped(cells: Cells) -> Iterator[tuple[str, Cells]]:
    """Yield the groups of existing columns; columns outside all groups come last."""
    for title, names in {**GROUPS, "Others": [name for name in cells if place_of(name) == place_of("")]}.items():
        if own := {name: cells[name] for name in names if name in cells}:
            yield title, own


def blocks(cells: Cells, found: Mapping[str, Column]) -> str:
    """Return the tables of docs/where-right.md, one for each group of columns."""
    return "\n".join(
        f"**{title}**\n\n{markdown(own, SHOWN, interval=False, order=cells, found=found)}"
        for title, own in grouped(cells)
    )


def page(
    cells: Cells,
    found: Mapping[str, Column],
    tests: Mapping[str, Mapping[str, str]],
    pairs: Sequence[Difference],
    *,
    networks: int,
) -> str:
    """Return the page with the full table and its intervals, the tested pairs, and the question of each test."""
    asked = "\n".join(f"| {name} | {test['question']} | {test['score']} |" for name, test in tests.items())
    fewer = "; ".join(
        f"`{name}` with {', '.join(f'{option} {value}' for option, value in options.items())}"
        for name, options in OPTIONS.items()
    )
    drawn = " and ".join(f"`{name}` {draws} times" for name, draws in DRAWS.items())
    tables = "\n".join(f"## {title}\n\n{markdown(own, order=cells, found=found)}" for title, own in grouped(cells))
    return (
        "# Where methods are right, and where not\n\n"
        f"Written by `python -m benchmarks ground-truth` (`--networks {networks}`). Mean [95 % interval]. Several "
        "targets of one picture count as one, their mean.\n\n"
        f"{_METHOD}\n\n"
        f"A network that names fewer than {100 * SURE:.0f} % of its pictures correctly is left out: where it is "
        "misled, what it looks at is not the truth. The last lines of each table state the number of pictures of all "
        "networks, the number of networks, and their accuracy (shortcut: of the network without it; two objects, "
        "transformer, two: both classes have the highest scores).\n\n"
        "–: does not apply; empty: zero everywhere. The share of empty maps stands in brackets; they are not in the "
        "mean. Methods that take hundreds of passes saw a third of the pictures, or a sixth (`score-cam` a third) "
        "where networks are many; n is the number of pictures that they saw.\n\n"
        f"Slow methods run with smaller budgets than by default: {fewer}. "
        f"Random methods and baselines are drawn several times, {drawn}; the score of an image is the mean of "
        "its draws.\n\n"
        f"![The table as a figure](ground-truth.png)\n\n{tables}\n"
        f"{pair_table(pairs)}\n## Tests\n\n| test | what is known | score |\n|---|---|---|\n{asked}\n"
    )


_METHOD = (
    "In columns with several networks, each network is one observation: intervals and p-values come from Student's t "
    "over the networks' means. With five networks the cluster bootstrap (networks, then pictures) is overconfident: if "
    "networks differ, its 95 % interval covers the true mean in about 85 % of cases, so its intervals are kept only in "
    "the JSON and no sentence relies on them. In columns with one network, each picture is one observation, and the "
    "result says nothing about other networks: intervals come from Student's t, p-values from random flips of signs. "
    f"Fewer than {FEWEST} pictures get no interval."
)


def p_of(p: float) -> str:
    """Return a p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def pair_table(pairs: Sequence[Difference]) -> str:
    """Return the table of tests that support comparisons in sentences."""
    lines = "\n".join(
        f"| {one.column} | {one.better} | {one.worse}{f' + {one.margin:g}' if one.margin else ''} "
        f"| {one.difference:.2f} [{one.low:.2f}, {one.high:.2f}] "
        f"| {p_of(one.p_holm)} | {one.n} | {one.agreeing} of {one.observations} "
        f"{'networks' if one.networks > 1 else 'pictures'} |"
        for one in pairs
    )
    return (
        "## Pairs\n\nDifferences on the pictures of the same networks for which both methods have a map, with "
        "intervals as above, positive where the first method is better; p-values are two-sided, with Holm's correction "
        "for all pairs of this table. + 0.05 marks a test of whether the first is worse by less than 0.05.\n\n"
        "| column | method | compared with | difference | p | pictures | agree |\n"
        f"|---|---|---|---|---|---|---|\n{lines}\n"
    )


def records(columns: Mapping[str, Column], cells: Cells) -> dict[str, Any]:
    """Return the values of each column in the form in which they are stored; undefined values are None."""
    return {
        column: {
            "scores": {row: _record(cell) for row, cell in rows.items()},
            "by network": {row: [_network(one) for one in scores] for row, scores in columns[column].scores.items()},
            "accuracy": columns[column].accuracies,
            "left out": [
                {"accuracy": one.notes["accuracy"], "scores": {row: _network(own) for row, own in one.scores.items()}}
                for one in columns[column].left_out
            ],
            "skipped": columns[column].skipped,
            "notes": columns[column].notes,
        }
        for column, rows in cells.items()
    }


def pair_records(pairs: Sequence[Difference]) -> list[dict[str, Any]]:
    """Return the values of each pair in the form in which they are stored; undefined values are None."""
    return [
        {name: _or_none(value) if isinstance(value, float) else value for name, value in vars(one).items()}
        for one in pairs
    ]


def _record(cell: Cell) -> dict[str, Any]:
    found = asdict(cell) if cell.n else {"n": 0, "empty": cell.empty, "networks": cell.networks, "empty_maps": 1.0}
    return {name: _or_none(value) if isinstance(value, float) else value for name, value in found.items()}


def _network(scores: Tensor) -> float | None:
    """Return the mean score of one network; None if it has no score."""
    return _or_none(float(np.nanmean(values)) if np.isfinite(values := per_picture(scores)).any() else math.nan)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
