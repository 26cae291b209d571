"""`python -m benchmarks faults`: plant every fault, and record the findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.faults import FAULTS, Fault
from benchmarks.results import RESULTS, environment
from gradcam_kit.diagnostics import Finding

STORED = RESULTS / "faults.json"


def run(
    only: Annotated[int, typer.Option(help="number of a single fault to plant; its row is shown, but not stored")] = 0,
    out: Annotated[Path, typer.Option(help="JSON file for the findings")] = STORED,
) -> None:
    """Plant every fault and its healthy twin, and record what the diagnostics report about them."""
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
    if any(not is_right(row, fault) for row, fault in zip(rows, _chosen(only), strict=True)):
        raise typer.Exit(1)


def _chosen(only: int) -> list[Fault]:
    return [fault for fault in FAULTS if only in (0, fault.number)]


def said(fault: Fault) -> dict[str, Any]:
    """Return the finding that answers a fault, and all findings about its twin, as values for JSON."""
    answer = fault.answer(fault.said(planted=True))
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
    """Whether the expected finding is reported, and the healthy twin has no finding."""
    return (row["level"], row["kind"], row["layer"]) == (fault.level, fault.kind, fault.layer) and not row["twin"]


def _short(finding: Finding) -> dict[str, str]:
    return {"level": finding.level, "kind": finding.kind, "layer": finding.layer}
