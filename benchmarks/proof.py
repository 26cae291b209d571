"""`python -m benchmarks proof`: the tables of docs/diagnostics-proof.md, made from what was stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.results import RESULTS, ROOT, Results, Row, digits, load

PAGE = ROOT / "docs" / "diagnostics-proof.md"
COST, FAULTS, LIMITS = "diagnostics-cpu.json", "faults.json", "thresholds-cpu.json"
CAPABILITIES = "capabilities-cpu.json"


def run(
    page: Annotated[Path, typer.Option(help="page with the markers")] = PAGE,
    results: Annotated[Path, typer.Option(help="folder of stored results")] = RESULTS,
) -> None:
    """Write the tables of docs/diagnostics-proof.md between its markers, from stored results."""
    page.write_text(filled(page.read_text(), results))
    typer.echo(f"written: {page}")


def filled(text: str, results: Path = RESULTS) -> str:
    """The text of the page with every block as the results say."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n\n{block(results)}\n\n{end}{rest.split(end)[1]}"
    return text


def cost_table(results: Path) -> str:
    """What a training step takes with each tool, beside a plain one."""
    stored = load(results / COST)
    rows = [
        [row.case["work"], _spread(row, "ratio"), _spread(row, "load"), row.note]
        for row in stored.rows
        if "ratio" in row.figures
    ]
    memory = [
        f"{row.case['work'].removeprefix('memory ')}: {row.figures['kib_per_layer'].median:.0f} KiB for each layer"  # type: ignore[union-attr]
        for row in stored.rows
        if "kib_per_layer" in row.figures
    ]
    return "\n".join(
        [
            f"{_conditions(stored)}; {stored.environment['rounds']} rounds of {stored.environment['steps']} steps, "
            "medians with quartiles.",
            "",
            _table(("tool", "x a plain step", "load of the machine", ""), rows),
            "",
            f"Memory of ModelDiagnostics {'; '.join(memory)}.",
        ]
    )


def fault_table(results: Path) -> str:
    """What is said of every planted fault."""
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
    """How far healthy models stay away from every limit."""
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
    return "\n".join(
        [
            f"{settings['seeds']} trainings of 4 and of {settings['steps']} steps for each model.",
            "",
            _table(columns, rows),
        ]
    )


@dataclass(frozen=True)
class Anchored:
    """One capability beside the best tool that there was for it.

    Attributes:
        name: in the words of a user.
        call: our function.
        anchor: the tool.
        adds: what ours does that it does not.
        work: of `benchmarks capabilities`; "" where there is nothing to measure.
        test: the file.
    """

    name: str
    call: str
    anchor: str
    adds: str
    work: str
    test: str


_D = "tests/diagnostics/"
ANCHORS = (
    Anchored(
        "Compare two models", "compare_models", "pytorch-cka (minibatch CKA)",
        "judges a model against itself: layers that change nothing, and collapsed features, as findings",
        "compare_models, 5 layers", f"{_D}test_compare_models.py",
    ),
    Anchored(
        "Compare two data sets", "compare_data", "Alibi Detect (MMD drift on one hidden layer)",
        "all layers in one pass of each set, corrected for their number, with the units that shift",
        "compare_data, 5 layers, 2 x 32 images", f"{_D}test_compare_data.py",
    ),
    Anchored(
        "Rank units for pruning", "layer_importance", "Torch-Pruning (which also removes them)",
        "ablation through the rest of the model as the truth, and how far cheap scores agree with it",
        "layer_importance, taylor, layer4", f"{_D}test_layer_importance.py",
    ),
    Anchored(
        "What is confused, and why", "analyze_mistakes", "a confusion matrix, and heatmaps one by one",
        "mean heatmaps of each pair and of both classes, with examples, from one pass for each batch",
        "analyze_mistakes, Grad-CAM", "tests/comparison/test_confusions.py",
    ),
    Anchored(
        "See attention", "capture_attention", "BertViz; timm's AttentionExtract",
        "fused kernels untouched, outputs equal to the last bit; pictures, texts; sinks and repeated heads as findings",
        "capture_attention, 6 layers of 3 heads", f"{_D}test_capture_attention.py",
    ),
    Anchored(
        "Gates of recurrent layers", "trace_recurrent", "a cell written by hand",
        "every layer and direction, packed sequences, projections; checked against the module's own output",
        "trace_recurrent, 2 layers", f"{_D}test_trace_recurrent.py",
    ),
    Anchored(
        "Frames of a clip", "temporal_cam", "Grad-CAM on the CNN, frame by frame",
        "the share of each frame in the score, through the recurrent layer or attention behind the CNN",
        "temporal_cam", "tests/methods/test_temporal_cam.py",
    ),
    Anchored(
        "Embeddings", "project", "scikit-learn; TensorBoard's projector",
        "the silhouette of the embeddings themselves beside the plot",
        "project, tsne, 200 x 64", f"{_D}test_project.py",
    ),
    Anchored(
        "Attention of graphs", "graph_attention", "torch_geometric's AttentionExplainer",
        "every layer and head by itself instead of one mask, and the edges as the layer used them",
        "graph_attention", f"{_D}test_graph_attention.py",
    ),
    Anchored(
        "Picture and text", "two_tower_cam", "Grad-CAM on the image tower of CLIP",
        "the map of the picture, the tokens and a fusion module in one call, for any pair of towers",
        "two_tower_cam", "tests/methods/test_two_tower_cam.py",
    ),
    Anchored(
        "Levels of a detector", "pyramid_levels", "TIDE (errors of the boxes)",
        "which level carries each box, and levels that never carry any",
        "pyramid_levels, SSDlite", f"{_D}test_pyramid_levels.py",
    ),
    Anchored(
        "Log a training", "JsonWriter, CsvWriter, TensorBoardWriter, MLflowWriter, WandbWriter", "wandb.watch",
        "NaN is counted and not dropped; one call for five destinations; a writer that fails never ends a training",
        "TensorBoardWriter, a window of 60 layers", f"{_D}test_writers.py",
    ),
    Anchored(
        "Callbacks", "watch_loop, DiagnosticsCallback, DiagnosticsTrainerCallback", "Lightning's DeviceStatsMonitor",
        "findings about the model and not the device; ranks are merged; also after an error",
        "", f"{_D}test_callbacks.py",
    ),
    Anchored(
        "A film of what is learned", "HeatmapLogger", "a loop written by hand",
        "the same images through a whole training, as GIF or MP4, without a trace in the run",
        "HeatmapLogger, one frame", "tests/comparison/test_film.py",
    ),
    Anchored(
        "Watch it live", "dashboard", "TensorBoard",
        "findings first; reads a plain file; on the loopback address alone",
        "", f"{_D}test_dashboard.py",
    ),
)  # fmt: skip


def capability_table(results: Path) -> str:
    """Capability, anchor, what ours adds, cost and test."""
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
