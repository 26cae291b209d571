"""Write the tables and plots of docs/ from stored results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cuda import ALONE
from benchmarks.peers import CAPTUM, GRAD_CAM, TORCH_CAM
from benchmarks.results import RESULTS, ROOT, Figure, Results, Row, digits, load, names_in

BEGIN, END = "<!-- begin: python -m benchmarks report -->", "<!-- end: python -m benchmarks report -->"
PAGE = "benchmarks.md"
_DEVICES = ("cpu", "cuda")
_PEERS = (GRAD_CAM, TORCH_CAM, CAPTUM)


def run(
    results: Annotated[Path, typer.Option(help="folder of stored results")] = RESULTS,
    summary: Annotated[Path, typer.Option(help="file that contains the two markers")] = ROOT / "docs" / "cost.md",
    docs: Annotated[Path, typer.Option(help="folder for the plots and for the page with all tables")] = ROOT / "docs",
) -> None:
    """Write the tables of docs/cost.md between its markers, and two plots and a page with all tables into docs/."""
    stored = {}
    for path in sorted(results.glob("*.json")):
        with suppress(ValueError):  # results in other formats, which are shown on other pages
            stored[path.stem] = load(path)
    if not stored:
        raise typer.BadParameter(f"no results in {results}; run another command first, such as `ratios`")
    docs.mkdir(parents=True, exist_ok=True)
    pictures = draw(stored, docs)
    (docs / PAGE).write_text(page(stored))
    block = shown(stored, pictures, os.path.relpath(docs, summary.parent))
    summary.write_text(between_markers(summary.read_text(), block))
    typer.echo(f"written: {summary}, {', '.join(str(docs / name) for name in (PAGE, *(one.file for one in pictures)))}")


@dataclass(frozen=True)
class Picture:
    """A plot in docs/, with its description in docs/cost.md."""

    file: str
    title: str
    conditions: str


def draw(stored: Mapping[str, Results], docs: Path) -> list[Picture]:
    """Draw the plots for which there are results, and return their descriptions."""
    from benchmarks.plots import draw_batches, draw_quality

    pictures = []
    for device in _DEVICES:
        end = "" if device == "cpu" else f"-{device}"
        if (quality := stored.get(f"quality-{device}")) and (rows := quality_rows(quality)):
            title = "Share of the heatmaps of each method on the object (median and quartiles), and its time per image"
            pictures.append(Picture(f"cost-quality{end}.svg", title, _conditions(quality)))
            draw_quality(rows, docs / pictures[-1].file)
        if (methods := stored.get(f"methods-{device}")) and (rows := batch_rows(methods)):
            title = "Time per image by batch size"
            pictures.append(Picture(f"cost-batch{end}.svg", title, _conditions(methods)))
            draw_batches(rows, docs / pictures[-1].file)
    return pictures


def quality_rows(quality: Results) -> list[Row]:
    """Return the rows with quality, the chance level included; empty if no method has both time and quality."""
    rows = [row for row in quality.where(what="method") if "energy" in row.figures]
    return rows if any("ratio" in row.figures for row in rows) else []


def batch_rows(methods: Results) -> list[Row]:
    """Return the times of one model by batch size, for methods that were measured at the largest batch size."""
    rows = [row for row in methods.where(model="resnet50", dtype="float32") if "seconds_per_image" in row.figures]
    largest = max((int(row.case["batch"]) for row in rows), default=1)
    kept = {row.case["method"] for row in rows if row.case["batch"] == largest} if largest > 1 else ()
    return [row for row in rows if row.case["method"] in kept]


def between_markers(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """Return the text with everything between the markers replaced.

    Raises:
        typer.BadParameter: the markers do not occur exactly once each, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise typer.BadParameter(f"expected the lines {begin} and {end} in this order, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{rest.split(end)[1]}"


def shown(stored: Mapping[str, Results], pictures: Sequence[Picture], folder: str) -> str:
    """Return the generated part of docs/cost.md: the tables of all commands and devices, and the plots."""
    parts = []
    for command, (caption, table) in _SECTIONS.items():
        for device in _DEVICES:
            if results := stored.get(f"{command}-{device}"):
                said = caption.format(**results.environment)
                parts += [f"{said} ({_conditions(results)}):", table(results)]
    for one in pictures:
        parts += [f"{one.title} ({one.conditions}):", f"![{one.title}]({folder}/{one.file})"]
    return "\n\n".join([*parts, f"[All figures]({folder}/{PAGE}), with their spread."])


def cost_table(results: Results) -> str:
    """Return a table of works with their speed and their ratio to the work with which they are compared."""
    rows = [row for row in results.rows if "ratio" in row.figures]
    cases = names_in(row.case for row in rows)
    speed = "pictures_per_second" if results.command == "runs" else "seconds"
    cells = [
        [
            *(str(row.case[name]) for name in cases),
            digits(row.figures[speed].median),
            row.beside,
            _ratio(row),
        ]
        for row in rows
    ]
    skipped = [f"Skipped: {row.key} ({row.skipped})." for row in results.rows if row.skipped]
    return "\n\n".join([markdown([*cases, speed.replace("_", " "), "compared with", "ratio"], cells), *skipped])


def _ratio(row: Row) -> str:
    ratio = row.figures["ratio"].median
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def device_table(results: Results) -> str:
    """Return a table of costs, and a sentence that names the methods that wait for the device before their end."""
    costs = [row for row in results.rows if not str(row.case["work"]).endswith(ALONE)]
    shares = [row for row in results.rows if "share" in row.figures]
    waiting = [str(row.case["work"]).partition(" ")[0] for row in shares if row.figures["share"].median < 1]
    said = f"Calls of {len(shares) - len(waiting)} of {len(shares)} methods wait for the device only at their end"
    others = f"; not those of {', '.join(waiting)}" if waiting else ""
    return f"{cost_table(replace(results, rows=costs))}\n\n{said}{others}."


def peer_table(peers: Results) -> str:
    """Return a row per method and a column per library."""
    by_method: dict[tuple[str, str], dict[str, str]] = {}
    for row in peers.rows:
        if "ratio" in row.figures:
            key = str(row.case["method"]), f"{row.case['model']}, batch {row.case['batch']}"
            difference = row.figures["difference"].median
            by_method.setdefault(key, {})[str(row.case["peer"])] = f"{_ratio(row)} ({difference:.0e})"
    cells = [[*key, *(beside.get(peer, "") for peer in _PEERS)] for key, beside in by_method.items()]
    return markdown(["method", "model", *_PEERS], cells)


_BESIDE = 'ratio: time divided by the time of the work in the column "compared with", both measured in turn'
_SECTIONS: Mapping[str, tuple[str, Callable[[Results], str]]] = {
    "ratios": (f"What heatmaps cost; plain forward passes are in `inference_mode`; {_BESIDE}", cost_table),
    "balanced": (f"What balanced gradients cost on {{batch}} images; {_BESIDE}", cost_table),
    "cuda": (f"What heatmaps cost on a GPU; {_BESIDE}", device_table),
    "peers": (
        "Time divided by the time of another library for the same work, both measured in turn, and in brackets the "
        "largest difference between the heatmaps, whose values are in [0, 1]; where formulas differ, the page of all "
        "figures says how",
        peer_table,
    ),
    "runs": (f"A folder of {{pictures}} JPEGs of mixed sizes, ResNet-50; {_BESIDE}", cost_table),
    "metrics": (f"Metrics of {{images}} images, and of 2 images with other libraries; {_BESIDE}", cost_table),
    "waiting": (
        "Score-CAM of {channels} channels on one image, ResNet-18, alone and next to a process that keeps one core "
        f"busy; {_BESIDE}",
        cost_table,
    ),
}
"""Command -> caption, into which the settings are filled, and function for the table, in the order of docs/cost.md."""


def page(stored: Mapping[str, Results]) -> str:
    """Return the page with all tables."""
    parts = [
        "# Figures",
        "Made by `python -m benchmarks report`. Medians; in brackets quartiles, or extremes of 2 or 3 repetitions.",
    ]
    for name, results in stored.items():
        parts += [f"## {name}", f"{_conditions(results)}, commit {str(results.environment.get('commit'))[:12]}."]
        rows = results.rows
        if results.command == "methods":
            parts += [
                "Time divided by the time of a plain forward pass, for one image; a star marks works timed only once.",
                matrix(results),
            ]
            rows = [row for row in rows if not _in_matrix(row)]
        measured = [row for row in rows if row.figures]
        if measured:
            parts.append(_all(measured))
        skipped = [f"- {row.key}: {row.skipped}" for row in rows if row.skipped]
        if skipped:
            parts.append("Skipped:\n\n" + "\n".join(skipped))
    return "\n\n".join(parts) + "\n"


def matrix(methods: Results) -> str:
    """Return a table of ratios for one image, methods by models; a dash if a method is unsuitable or takes too long."""
    rows = [row for row in methods.rows if _in_matrix(row)]
    models = list(dict.fromkeys(str(row.case["model"]) for row in rows))
    by_method: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = f"{_ratio(row)}{'*' if row.note else ''}" if row.figures else "-"
        by_method.setdefault(str(row.case["method"]), {})[str(row.case["model"])] = cell
    return markdown(
        ["method", *models], [[name, *(own.get(model, "") for model in models)] for name, own in by_method.items()]
    )


def _in_matrix(row: Row) -> bool:
    return row.case.get("batch") == 1 and row.case["dtype"] == "float32" and "what" not in row.case


def _all(rows: Sequence[Row]) -> str:
    cases, figures = names_in(row.case for row in rows), names_in(row.figures for row in rows)
    remarks = [name for name in ("beside", "note") if any(getattr(row, name) for row in rows)]
    cells = [
        [
            *(str(row.case.get(name, "")) for name in cases),
            *(_text(row.figures.get(name)) for name in figures),
            *(getattr(row, name) for name in remarks),
        ]
        for row in rows
    ]
    return markdown([*cases, *figures, *remarks], cells)


def _text(figure: Figure | None) -> str:
    return "" if figure is None else str(figure)


def _conditions(results: Results) -> str:
    seen = results.environment
    hardware = seen["processor"] if seen["device"] == "cpu" else seen["device"]
    threads = f"{seen['threads']} thread{'s' if seen['threads'] != 1 else ''}"
    return f"{hardware}, {threads}, torch {seen['versions']['torch']}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
