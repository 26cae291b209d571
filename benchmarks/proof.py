"""`python -m benchmarks proof`: write the tables of docs/diagnostics-proof.md from stored results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.anchors import ANCHORS
from benchmarks.diagnostics import IN_TURN, TOOLS
from benchmarks.results import RESULTS, ROOT, Results, Row, digits, load
from benchmarks.thresholds.command import FRESH, LEFT_OUT
from gradcam_kit.diagnostics.history import FIELDS, ROWS
from gradcam_kit.diagnostics.maths.histogram import BINS, COARSE

PAGE = ROOT / "docs" / "diagnostics-proof.md"
COST, FAULTS, LIMITS = "diagnostics-cpu.json", "faults.json", "thresholds-cpu.json"
CAPABILITIES = "capabilities-cpu.json"

MEMORY_GOAL = 64
"""Goal for the memory of ModelDiagnostics: KiB per layer, without pooled features."""
HISTORY_KIB, HISTOGRAMS_KIB = ROWS * (4 * len(FIELDS) + 2 * COARSE) / 1024, 2 * 8 * BINS / 1024


def run(
    page: Annotated[Path, typer.Option(help="page that contains the markers")] = PAGE,
    results: Annotated[Path, typer.Option(help="folder of stored results")] = RESULTS,
) -> None:
    """Write the tables of docs/diagnostics-proof.md between its markers, from stored results."""
    page.write_text(filled(page.read_text(), results))
    typer.echo(f"written: {page}")


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the text of the page with every block filled from the results."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n\n{block(results)}\n\n{end}{rest.split(end)[1]}"
    return text


def cost_table(results: Path) -> str:
    """Return a table with the cost of each tool in a training step and its goal, followed by the missed goals."""
    stored = load(results / COST)
    measured = {str(row.case["work"]): row for row in stored.rows if "ratio" in row.figures}
    goals = {name: tool.goal for name, tool in TOOLS.items() if tool.goal is not None}
    rows = [
        [name, _spread(row, "ratio"), f"{goals[name]:.2f}" if name in goals else "", _spread(row, "load"), row.note]
        for name, row in measured.items()
    ]
    kept = [
        f"{row.figures['kib_per_layer'].median:.0f} KiB for each layer {str(row.case['work']).removeprefix('memory ')}"
        for row in stored.rows
        if "kib_per_layer" in row.figures
    ]
    missed = [
        f"{name} ({measured[name].figures['ratio'].median:.3g} instead of {goal:.2f})"
        for name, goal in goals.items()
        if name in measured and measured[name].figures["ratio"].median > goal
    ]
    most = max(row.figures["kib_per_layer"].median for row in stored.rows if "kib_per_layer" in row.figures)
    if most > MEMORY_GOAL:
        missed.append(f"memory ({most:.0f} KiB for each layer instead of {MEMORY_GOAL} KiB)")
    seen = stored.environment
    return "\n".join(
        [
            f"{_conditions(stored)}, {seen['cores']} cores; {seen['rounds']} rounds of at most {seen['steps']} steps, "
            "medians with quartiles.",
            "Each round measures all tools in turn, so that they meet the same load."
            if seen.get("order") == IN_TURN
            else "These tools were measured one after the other, so compare only those that met a similar load.",
            "",
            _table(("tool", "x a plain step", "goal", "load of the machine", ""), rows),
            "",
            f"Memory of ModelDiagnostics in a running block: {', '.join(kept)} (goal: {MEMORY_GOAL} KiB). "
            f"Each includes {HISTOGRAMS_KIB:.0f} KiB of two histograms and at most {HISTORY_KIB:.1f} KiB of history.",
            "",
            f"Goals missed: {'; '.join(missed)}." if missed else "No goal is missed.",
        ]
    )


def fault_table(results: Path) -> str:
    """Return a table with the finding about every planted fault."""
    rows = json.loads((results / FAULTS).read_text())["rows"]
    return _table(
        ("", "planted", "at", "found by", "says", "names", "in words"),
        [
            [
                *(row["number"], row["planted"], _code(row["at"]), _code(row["tool"])),
                *(f"{row['level']} {_code(row['kind'])}", _code(row["layer"])),
                row["said"].partition(". Before it:")[0],
            ]
            for row in rows
        ],
    )


def limit_table(results: Path) -> str:
    """Return a table with the distance of healthy models from every limit."""
    stored = load(results / LIMITS)
    rows = []
    for row in stored.rows:
        if row.figures:
            figures = row.figures
            rows.append(
                [
                    _code(str(row.case["threshold"])),
                    row.case["statistic"],
                    *(str(figures["distribution"]), digits(figures["worst"].median), digits(figures["limit"].median)),
                    digits(figures["margin"].median) if "margin" in figures else "",
                    f"{figures['beyond'].median:.1%} of {digits(figures['values'].median)}",
                    row.note.rpartition("worst: ")[2],
                ]
            )
    columns = ("limit", "of", "median (quartiles)", "worst", "limit is", "margin", "beyond", "the worst is of")
    settings = stored.environment
    shares = {str(row.case["threshold"]): row.figures for row in stored.rows if row.figures}
    crossed = [
        f"{_code(name)} ({own['beyond'].median:.1%} of {own['values'].median:.0f})"
        for name, own in shares.items()
        if own["beyond"].median > 0
    ]
    reasons = [
        f"{', '.join(_code(name) for name, own in LEFT_OUT.items() if own == why)} ({why})"
        for why in dict.fromkeys(LEFT_OUT.values())
    ]
    return "\n".join(
        [
            f"{settings['seeds']} trainings of {FRESH} steps and as many of {settings['steps']} steps for each model.",
            "",
            _table(columns, rows),
            "",
            f"Limits that healthy models cross: {', '.join(crossed)}.",
            "",
            f"Left out, since no finding rests on crossing them: {'; '.join(reasons)}.",
        ]
    )


def capability_table(results: Path) -> str:
    """Return the table of capabilities: existing tool, what ours adds, cost and test."""
    stored = load(results / CAPABILITIES)
    costs = {str(row.case.get("work")): row for row in stored.rows}
    rows = [
        [
            own.name,
            ", ".join(map(_code, own.call.split(", "))),
            own.anchor,
            own.adds,
            _cost(costs.get(own.work)),
            _code(own.test),
        ]
        for own in ANCHORS
    ]
    columns = ("what", "call", "best tool so far", "what ours adds", "cost", "test")
    return "\n".join([f"{_conditions(stored)}, processor time.", "", _table(columns, rows)])


def _cost(row: Row | None) -> str:
    if row is None or not row.figures:
        return ""
    seconds = f"{1e3 * row.figures['seconds'].median:.3g} ms"
    return f"{digits(row.figures['ratio'].median)} x {row.beside}" if "ratio" in row.figures else seconds


def _conditions(stored: Results) -> str:
    seen: Mapping[str, Any] = stored.environment
    threads = f"{seen['threads']} thread" + "s" * (seen["threads"] > 1)
    return f"{seen['processor']}, {threads}, torch {seen['versions']['torch'].partition('+')[0]}"


def _spread(row: Row, name: str) -> str:
    figure = row.figures.get(name)
    return "" if figure is None else f"{figure.median:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def _code(name: str) -> str:
    return f"`{name}`" if name else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


BLOCKS: Mapping[str, Callable[[Path], str]] = {
    "cost": cost_table,
    "faults": fault_table,
    "limits": limit_table,
    "capabilities": capability_table,
}
