"""Outputs as they are stored: small pictures, plain tables, nothing that another run or machine would change."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

ROOT = Path(__file__).parents[1]
KEY = "gradcam_kit"
"""Of the metadata that `tidy` leaves in a notebook: {"code": hash of the code that made the outputs}."""

PREPARATION = "from notebooks.outputs import show_comparisons_as_pictures\nshow_comparisons_as_pictures()"
"""Runs in the kernel before the first cell, and is not stored."""

_WIDEST, _QUALITIES, _COLORS, _LARGE = 1100, (80, 70, 60, 50), 128, 75_000
_CELL, _FONT = 124, 12


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Return a hash of all code cells, in their order."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Bring outputs, counts and metadata of an executed notebook to the form in which they are stored."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(cells, 1):
        ran = cell.execution_count is not None or cell.outputs
        cell.execution_count = count if ran else None
        cell.outputs = [smaller for output in _joined(cell.outputs) for smaller in _stored(output, count)]
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        KEY: {"code": code_hash(notebook)},
    }


def _joined(outputs: list[Any]) -> list[Any]:
    """Join what was printed in several pieces: where they end depends on the time."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _stored(output: Any, count: int) -> Iterator[Any]:
    """Yield one output for each kind of content that a viewer should show."""
    if output.output_type == "stream":
        output.text = _clean(output.text)
        yield output
    elif output.output_type == "error":
        yield output
    else:
        data = output.data
        picture = _picture(data)
        if picture is not None:
            yield nbformat.v4.new_output("display_data", data=picture)
        if "text/html" in data:
            html = re.sub(r"\bT_[0-9a-f]{5}(?=_|\b)", f"T_{count}", data["text/html"])  # drawn anew by each run
            yield _result(output, {"text/html": _clean(html)}, count)
        elif picture is None:
            yield _result(output, {"text/plain": _clean(data["text/plain"])}, count)


def _result(output: Any, data: dict[str, str], count: int) -> Any:
    if output.output_type == "execute_result":
        return nbformat.v4.new_output("execute_result", data=data, execution_count=count)
    return nbformat.v4.new_output("display_data", data=data)


def _clean(text: str) -> str:
    """Leave out where this checkout and the folder of the run are, and where objects lie in memory."""
    text = text.replace(f"{ROOT}/", "")
    text = re.sub(r"(/private)?(/var/folders/\w+/\w+/T|/tmp)/tmp\w+/?", "", text)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _picture(data: Any) -> dict[str, str] | None:
    """Return a picture as JPEG, a plot in few colors, or as JPEG if that is large; None = there is none."""
    kind = next((kind for kind in ("image/jpeg", "image/png") if kind in data), None)
    if kind is None:
        return None
    image = Image.open(io.BytesIO(base64.b64decode(data[kind]))).convert("RGB")
    if image.width > _WIDEST:
        image = image.resize((_WIDEST, round(image.height * _WIDEST / image.width)), Image.Resampling.LANCZOS)
    if "image/jpeg" not in data:  # figures of matplotlib come as PNG alone
        plot = _encoded(image.quantize(_COLORS, dither=Image.Dither.NONE), "PNG", optimize=True)
        if len(plot) < _LARGE:
            return {"image/png": base64.b64encode(plot).decode()}
    for quality in _QUALITIES:  # noise takes many bytes
        encoded = _encoded(image, "JPEG", quality=quality, optimize=True)
        if len(encoded) < _LARGE:
            break
    return {"image/jpeg": base64.b64encode(encoded).decode()}


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def show_comparisons_as_pictures() -> None:
    """Let the kernel show comparisons as pictures and tables, without styles and scripts, which web sites remove."""
    from IPython import get_ipython

    formatters = get_ipython().display_formatter.formatters
    for kind, show in (("image/jpeg", _sheet), ("text/html", _table)):
        formatters[kind].for_type_by_name("gradcam_kit.comparison.record", "Comparison", show)  # imports nothing


def _sheet(comparison: Any, most: int = 8) -> bytes:
    """Return the first images of a comparison as a JPEG, each with all of its heatmaps in one row."""
    from gradcam_kit.render import contact_sheet, overlay

    panels = comparison.panels(most)
    rows = [[panel.picture, *(overlay(panel.picture, cell.heatmap) for cell in panel.cells)] for panel in panels]
    metrics = {name for own in comparison.measured.values() for name in own}
    titles = [[panel.note, *(_said(cell.notes, metrics) for cell in panel.cells)] for panel in panels]
    labels = ["", *(cell.title for cell in panels[0].cells)]
    columns = len(labels)
    size = min(_CELL + 8, (_WIDEST - 90) // columns - 8) if columns > 4 else 180
    sheet = contact_sheet(
        rows,
        titles=titles,
        column_titles=labels,
        row_titles=[panel.title for panel in panels],
        cell_size=size,
        margin=8,
        font_size=_FONT,
    )
    return _encoded(Image.fromarray(sheet), "JPEG", quality=95)


def _said(notes: tuple[str, ...], metrics: set[str]) -> str:
    """Return what is written above a heatmap: a single metric as its number alone, because its name is too long."""
    if len(metrics) != 1:
        return ""
    (metric,) = metrics
    return next((note.removeprefix(metric).strip() for note in notes if note.startswith(metric)), "")


def _table(comparison: Any) -> str | None:
    """Return means and costs as plain HTML, but for the seconds, which are those of one machine."""
    from gradcam_kit.comparison.gallery import format_value

    rows = comparison.summary_rows() if comparison.costs or comparison.measured else []
    if not rows:
        return None
    columns = [name for name in rows[0] if name != "seconds"]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(format_value(row.get(name)))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    notes = "".join(f"<p><small>{escape(note)}</small></p>" for note in comparison.notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"
