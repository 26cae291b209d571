"""`python -m benchmarks faults`: plant every fault, and write down what is said of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.faults import FAULTS, Fault
from benchmarks.results import RESULTS, ROOT, environment
from gradcam_kit.diagnostics import Finding

STORED = RESULTS / "faults.json"
PAGE = ROOT / "docs" / "diagnostics-proof.md"
BEGIN, END = "<!-- begin: python -m benchmarks faults -->", "<!-- end: python -m benchmarks faults -->"
_COLUMNS = ("", "planted", "at", "found by", "level and kind", "names", "what is said")


def run(
    only: Annotated[int, typer.Option(help="the number of one fault, which is shown and not stored")] = 0,
    out: Annotated[Path, typer.Option(help="JSON of what was said")] = STORED,
    page: Annotated[Path, typer.Option(help="page with the two markers")] = PAGE,
) -> None:
    """Plant every fault and its healthy twin, and tell what the diagnostics say of them."""
    rows = [said(fault) for fault in FAULTS if only in (0, fault.number)]
    table = Table("", "planted", "found by", "says", "names", "twin")
    for row in rows:
        table.add_row(
            str(row["number"]), row["planted"], row["tool"], f"{row['level']} {row['kind']}", row["layer"] or "-",
            "; ".join(f"{one['level']} {one['kind']} {one['layer']}" for one in row["twin"]) or "silent",
        )  # fmt: skip
    Console(markup=False, width=None if Console().is_terminal else 180).print(table)
    if not only:
        out.write_text(json.dumps({"environment": environment("cpu"), "rows": rows}, indent=1) + "\n")
        page.write_text(between(page.read_text(), table_of(rows)))
    if any(not is_right(row, fault) for row, fault in zip(rows, _chosen(only), strict=True)):
        raise typer.Exit(1)


def _chosen(only: int) -> list[Fault]:
    return [fault for fault in FAULTS if only in (0, fault.number)]


def said(fault: Fault) -> dict[str, Any]:
    """What is said of a fault and of its twin, as JSON takes it."""
    answer = fault.answer()
    return {
        "number": fault.number,
        "planted": fault.title,
        "at": fault.at,
        "tool": fault.tool,
        "level": "" if answer is None else answer.level,
        "kind": "" if answer is None else answer.kind,
        "layer": "" if answer is None else answer.layer,
        "said": "" if answer is None else answer.message,
        "advice": "" if answer is None else answer.advice,
        "twin": [_short(finding) for finding in fault.said(planted=False)],
    }


def is_right(row: dict[str, Any], fault: Fault) -> bool:
    """Whether the guilty module is named, and nothing is said of the twin."""
    return (row["level"], row["kind"], row["layer"]) == (fault.level, fault.kind, fault.layer) and not row["twin"]


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the page."""
    cells = [
        [
            *(str(row["number"]), row["planted"], _code(row["at"]), _code(row["tool"])),
            *(f"{row['level']} {_code(row['kind'])}", _code(row["layer"]), _short_text(row["said"])),
        ]
        for row in rows
    ]
    return "\n".join(map(_line, [_COLUMNS, ["---"] * len(_COLUMNS), *cells]))


def between(text: str, block: str) -> str:
    """The text with the block between the markers."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{block}\n\n{END}{rest.split(END)[1]}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(name: str) -> str:
    return f"`{name}`" if name else ""


def _short_text(text: str) -> str:
    """The message without the trail in front of a NaN."""
    return text.partition(". Before it:")[0]


def _short(finding: Finding) -> dict[str, str]:
    return {"level": finding.level, "kind": finding.kind, "layer": finding.layer}
