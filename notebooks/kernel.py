"""What a kernel needs to show comparisons as they are stored: it imports little, as every notebook waits for it."""

from __future__ import annotations

import io
from html import escape
from typing import Any

from PIL import Image

WIDEST = 1100
"""Maximum width of a stored picture, in pixels."""
_CELL, _FONT = 124, 12


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
    size = min(_CELL + 8, (WIDEST - 90) // columns - 8) if columns > 4 else 180
    sheet = contact_sheet(
        rows,
        titles=titles,
        column_titles=labels,
        row_titles=[panel.title for panel in panels],
        cell_size=size,
        margin=8,
        font_size=_FONT,
    )
    return encoded(Image.fromarray(sheet), "JPEG", quality=95)


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


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as the bytes of a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
