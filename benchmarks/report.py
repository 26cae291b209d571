"""The tables and plots of README.md and docs/, made from stored results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers import CAPTUM, GRAD_CAM, TORCH_CAM
from benchmarks.results import RESULTS, ROOT, Figure, Results, Row, load, names_in

BEGIN, END = "<!-- begin: python -m benchmarks report -->", "<!-- end: python -m benchmarks report -->"
QUALITY_PLOT, BATCH_PLOT, PAGE = "cost-quality.svg", "cost-batch.svg", "benchmarks.md"
_PEERS = (GRAD_CAM, TORCH_CAM, CAPTUM)
_TITLES = {
    QUALITY_PLOT: "How much of the heatmaps of every method lies on the object (median and quartiles), and its time",
    BATCH_PLOT: "Time per image by batch size",
}


def run(
    results: Annotated[Path, typer.Option(help="folder of stored results")] = RESULTS,
    readme: Annotated[Path, typer.Option(help="file with the two markers")] = ROOT / "README.md",
    docs: Annotated[Path, typer.Option(help="folder of the plots and of the page with all tables")] = ROOT / "docs",
) -> None:
    """Write the README's tables between its markers, and two plots and a page with all tables into docs/."""
    stored = {}
    for path in sorted(results.glob("*.json")):
        with suppress(ValueError):  # other results have other forms, and pages of their own
            stored[path.stem] = load(path)
    if not stored:
        raise typer.BadParameter(f"no results in {results}; run another command first, such as `ratios`")
    docs.mkdir(parents=True, exist_ok=True)
    pictures = draw(stored, docs)
    (docs / PAGE).write_text(page(stored))
    block = summary(stored, pictures, os.path.relpath(docs, readme.parent))
    readme.write_text(between_markers(readme.read_text(), block))
    typer.echo(f"written: {readme}, {', '.join(str(docs / name) for name in (PAGE, *pictures))}")


def draw(stored: Mapping[str, Results], docs: Path) -> list[str]:
    """The plots for which there are results; their names."""
    from benchmarks.plots import draw_batches, draw_quality

    pictures = []
    if "quality-cpu" in stored:
        draw_quality(stored["quality-cpu"].where(what="method"), docs / QUALITY_PLOT)
        pictures.append(QUALITY_PLOT)
    if "methods-cpu" in stored and (rows := batch_rows(stored["methods-cpu"])):
        draw_batches(rows, docs / BATCH_PLOT)
        pictures.append(BATCH_PLOT)
    return pictures


def batch_rows(methods: Results) -> list[Row]:
    """Times at several batch sizes of one model, of the methods that were measured at the largest of them."""
    rows = [row for row in methods.where(model="resnet50", dtype="float32") if "seconds_per_image" in row.figures]
    largest = max((int(row.case["batch"]) for row in rows), default=1)
    kept = {row.case["method"] for row in rows if row.case["batch"] == largest} if largest > 1 else ()
    return [row for row in rows if row.case["method"] in kept]


def between_markers(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with what stands between the markers replaced.

    Raises:
        typer.BadParameter: the markers are not there once each, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise typer.BadParameter(f"expected the lines {begin} and, behind it, {end} in the README, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{rest.split(end)[1]}"


_BASELINE = Figure(1, 1, 1)  # the ratio of what others are compared with


def summary(stored: Mapping[str, Results], pictures: Sequence[str], folder: str) -> str:
    """What README shows: costs beside a forward pass, other libraries, runs, metrics, two plots."""
    parts = []
    if ratios := stored.get("ratios-cpu"):
        rows = [row for row in ratios.rows if row.figures.get("ratio", _BASELINE) != _BASELINE]
        cells = [[*map(str, row.case.values()), _ratio(row)] for row in rows]
        parts += [
            f"Time / that of a plain `inference_mode` forward pass of the same batch ({_conditions(ratios)}):",
            markdown([*rows[0].case, "ratio"], cells),
        ]
    if peers := stored.get("peers-cpu"):
        parts += [
            "Time / that of another library for the same work, and in brackets the largest difference of the heatmaps, "
            f"which are in [0, 1] ({_conditions(peers)}); where formulas differ, the page of all figures says how:",
            peer_table(peers),
        ]
    if runs := stored.get("runs-cpu"):
        rows = [row for row in runs.rows if "pictures_per_second" in row.figures]
        speeds = [row.figures["pictures_per_second"].median for row in rows]
        cells = [[str(row.case["work"]), f"{each:.1f}", _ratio(row)] for row, each in zip(rows, speeds, strict=True)]
        parts += [
            f"A folder of {runs.environment['pictures']} JPEGs of mixed sizes, ResNet-50; time / that of a bare loop "
            f"({_conditions(runs)}):",
            markdown(["work", "pictures/s", "ratio"], cells),
        ]
    if metrics := stored.get("metrics-cpu"):
        rows = [row for row in metrics.rows if row.figures.get("ratio", _BASELINE) != _BASELINE]
        parts += [
            "Metrics; time / that of the plain forward passes of as many images, or of ours where another library is "
            f"named ({_conditions(metrics)}):",
            markdown(
                ["work", "ratio"], [[str(row.case["work"]), f"{row.figures['ratio'].median:.2f}"] for row in rows]
            ),
        ]
    parts += [f"![{_TITLES[name]}]({folder}/{name})" for name in pictures]
    return "\n\n".join([*parts, f"[All figures]({folder}/{PAGE}), with their spread."])


def _ratio(row: Row) -> str:
    return f"{row.figures['ratio'].median:.2f}"


def peer_table(peers: Results) -> str:
    """A row per method, a column per library."""
    by_method: dict[tuple[str, str], dict[str, str]] = {}
    for row in peers.rows:
        if "ratio" in row.figures:
            key = str(row.case["method"]), f"{row.case['model']}, batch {row.case['batch']}"
            ratio, difference = row.figures["ratio"].median, row.figures["difference"].median
            by_method.setdefault(key, {})[str(row.case["peer"])] = f"{ratio:.2f} ({difference:.0e})"
    cells = [[*key, *(beside.get(peer, "") for peer in _PEERS)] for key, beside in by_method.items()]
    return markdown(["method", "model", *_PEERS], cells)


def page(stored: Mapping[str, Results]) -> str:
    """All tables."""
    parts = ["# Figures", "Made by `python -m benchmarks report`. Medians, with quartiles in brackets."]
    for name, results in stored.items():
        parts += [f"## {name}", f"{_conditions(results)}, commit {str(results.environment.get('commit'))[:12]}."]
        rows = results.rows
        if results.command == "methods":
            parts += ["Time / that of a plain forward pass, one image:", matrix(results)]
            rows = [row for row in rows if not _in_matrix(row)]
        measured = [row for row in rows if row.figures]
        if measured:
            parts.append(_all(measured))
        skipped = [f"- {row.key}: {row.skipped}" for row in rows if row.skipped]
        if skipped:
            parts.append("Skipped:\n\n" + "\n".join(skipped))
    return "\n\n".join(parts) + "\n"


def matrix(methods: Results) -> str:
    """Ratios of one image, methods by models; a dash where a method is not for the model or takes too long."""
    rows = [row for row in methods.rows if _in_matrix(row)]
    models = list(dict.fromkeys(str(row.case["model"]) for row in rows))
    by_method: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = f"{row.figures['ratio'].median:.2f}" if row.figures else "-"
        by_method.setdefault(str(row.case["method"]), {})[str(row.case["model"])] = cell
    return markdown(
        ["method", *models], [[name, *(own.get(model, "") for model in models)] for name, own in by_method.items()]
    )


def _in_matrix(row: Row) -> bool:
    return row.case["batch"] == 1 and row.case["dtype"] == "float32" and "what" not in row.case


def _all(rows: Sequence[Row]) -> str:
    cases, figures = names_in(row.case for row in rows), names_in(row.figures for row in rows)
    notes = ["note"] if any(row.note for row in rows) else []
    cells = [
        [
            *(str(row.case.get(name, "")) for name in cases),
            *(_text(row.figures.get(name)) for name in figures),
            *([row.note] if notes else []),
        ]
        for row in rows
    ]
    return markdown([*cases, *figures, *notes], cells)


def _text(figure: Figure | None) -> str:
    return "" if figure is None else str(figure)


def _conditions(results: Results) -> str:
    seen = results.environment
    hardware = seen["processor"] if seen["device"] == "cpu" else seen["device"]
    images = f"{seen['batch']} images of 224², " if results.command == "ratios" and "batch" in seen else ""
    return f"{images}{hardware}, {seen['threads']} threads, torch {seen['versions']['torch']}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
