"""Render heatmaps side by side: as a page with an opacity slider, as one picture, or as a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gradcam_kit.errors import missing_extra
from gradcam_kit.functional import normalize
from gradcam_kit.pages import data_uri
from gradcam_kit.pixels.pictures import RGB, encode_picture, rgb_picture
from gradcam_kit.render import colorize, colormap_table, contact_sheet, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
"""Maximum number of columns of a sheet or figure, the picture included; further heatmaps go into the next row."""
_LARGEST = 448  # maximum width and height of a displayed picture, in pixels


@dataclass(frozen=True)
class Cell:
    """A heatmap in [0, 1] that covers the picture at any resolution, with a title and lines of notes."""

    heatmap: Float[np.ndarray, "h w"]
    title: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A picture with its caption and heatmaps."""

    picture: RGB
    title: str
    note: str
    cells: tuple[Cell, ...]

    @property
    def shown(self) -> RGB:
        """The picture, shrunk to a width and height of at most `_LARGEST` pixels."""
        image = Image.fromarray(self.picture)
        image.thumbnail((_LARGEST, _LARGEST))
        return np.asarray(image)


def render_sheet(panels: Sequence[Panel], columns: int = COLUMNS) -> RGB:
    """Return all panels as one picture. A panel with many heatmaps takes several rows."""
    rows: list[Sequence[RGB | None]] = []
    titles: list[list[str]] = []
    names: list[str] = []
    for panel in panels:
        picture = panel.shown
        rendered = [picture, *(overlay(picture, cell.heatmap) for cell in panel.cells)]
        labels = [panel.note, *(cell.title for cell in panel.cells)]
        step = _per_row(len(rendered), columns)
        for start in range(0, len(rendered), step):
            rows.append(rendered[start : start + step])
            titles.append(labels[start : start + step])
            names.append("" if start else panel.title)
    width = max(map(len, rows))
    filled = [[*row, *([None] * (width - len(row)))] for row in rows]
    titles = [[*row, *[""] * (width - len(row))] for row in titles]
    return contact_sheet(filled, titles=titles, row_titles=names)


def render_figure(panels: Sequence[Panel], columns: int = COLUMNS, *, alpha: float = 0.5) -> Figure:
    """Return all panels as a closed matplotlib figure, because a notebook would show an open figure twice.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        instead = "save() writes .png and .html without it"
        raise missing_extra("plot() needs matplotlib", "notebook", instead) from error
    most = 1 + max(len(panel.cells) for panel in panels)
    per_row = _per_row(most, columns)
    rows = math.ceil(most / per_row)
    lines = 1 + max((len(cell.notes) for panel in panels for cell in panel.cells), default=0)
    size = (1.9 * per_row, (1.9 + 0.16 * lines) * rows * len(panels))
    figure, axes = pyplot.subplots(rows * len(panels), per_row, figsize=size, squeeze=False, layout="constrained")
    pyplot.close(figure)
    for axis in axes.flat:
        axis.set_axis_off()
    for block, panel in zip(axes.reshape(len(panels), -1), panels, strict=True):
        picture = panel.shown
        _draw(block[0], picture, panel.title, [panel.note])
        for axis, cell in zip(block[1:], panel.cells, strict=False):
            _draw(axis, overlay(picture, cell.heatmap, alpha=alpha), cell.title, cell.notes)
    return figure


def render_page(
    panels: Sequence[Panel], head: str, tables: Mapping[str, Sequence[Mapping[str, Any]]], foot: Sequence[str] = ()
) -> str:
    """Return all panels as HTML that needs neither network nor kernel, with embedded pictures and an opacity slider.

    Args:
        panels: the panels to show.
        head: plain text above the panels.
        tables: tables by title, each a list of rows with the same keys.
        foot: plain text below the panels.
    """
    figures = "".join(_panel(panel) for panel in panels)
    shown = "".join(_table(title, rows) for title, rows in tables.items() if rows)
    notes = "".join(f"<p class=gk-quiet>{escape(note)}</p>" for note in foot)
    return (
        f'<div class="gk" style="--gk-opacity:.5">{_STYLE}<div class=gk-head><span>{escape(head)}</span>'
        "<label>opacity <input type=range min=0 max=1 step=.05 value=.5 aria-label=opacity "
        "oninput=\"this.closest('.gk').style.setProperty('--gk-opacity',this.value)\"></label>"
        f"<span class=gk-scale>0 <i></i> 1</span></div>{figures}{shown}{notes}</div>"
    )


def shown_pictures(
    images: Float[Tensor, "n c *t"], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> list[RGB]:
    """Return images as pictures: signals as strips, volumes as middle slices, channels averaged unless there are three.

    Args:
        images: the model's input.
        mean: mean of the normalization to undo; None = images are stretched to [0, 1] if values lie outside.
        std: standard deviation of the normalization to undo.
    """
    values = images.detach().float().cpu()
    if mean is not None and std is not None and values.shape[1] == len(mean):
        shape = (-1, *[1] * (values.ndim - 2))
        values = (values * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
    elif values.numel() and not 0 <= float(values.min()) <= float(values.max()) <= 1:
        values = normalize(values)
    if values.shape[1] != 3:
        values = values.mean(1, keepdim=True)
    n, c = values.shape[:2]
    flat = flat_maps(values.flatten(0, 1))
    return [rgb_picture(picture) for picture in flat.reshape(n, c, *flat.shape[1:])]


def flat_maps(maps: Float[Tensor, "n *t"]) -> Float[Tensor, "n h w"]:
    """Return maps for display: signals as strips, volumes as middle slices."""
    if maps.ndim == 2:
        return maps[:, None].expand(-1, max(maps.shape[1] // 6, 1), -1)
    return maps if maps.ndim == 3 else maps[:, maps.shape[1] // 2]


def _per_row(cells: int, most: int) -> int:
    """Return the number of columns, at most `most`, that gives the fewest rows and fills them evenly."""
    return math.ceil(cells / math.ceil(cells / most))


def _draw(axis: Any, picture: RGB, title: str, notes: Sequence[str]) -> None:
    axis.imshow(picture)
    # matplotlib would read a dollar sign as the start of a formula
    axis.set_title("\n".join(filter(None, (title, *notes))).replace("$", r"\$"), fontsize=7)


def _panel(panel: Panel) -> str:
    picture = panel.shown
    height, width = picture.shape[:2]
    # Embed the picture once, as the background of all cards.
    shared = f"--gk-picture:url({_data(picture)});--gk-ratio:{width}/{height}"
    cards = [_card("", "picture")]
    # The browser enlarges the colored heatmap to the size of the picture, so the heatmap's own resolution suffices.
    cards += [_card(f'<img alt="" src="{_data(colorize(one.heatmap))}">', one.title, one.notes) for one in panel.cells]
    note = f" <span class=gk-quiet>· {escape(panel.note)}</span>" if panel.note else ""
    head = f"<h4>{escape(panel.title)}{note}</h4>"
    return f'<section style="{shared}">{head}<div class=gk-cards>{"".join(cards)}</div></section>'


def _card(heatmap: str, title: str, notes: Sequence[str] = ()) -> str:
    said = "".join(f"<br><span class=gk-quiet>{escape(note)}</span>" for note in notes)
    return f"<figure><div class=gk-stack>{heatmap}</div><figcaption>{escape(title)}{said}</figcaption></figure>"


def _data(picture: RGB) -> str:
    return data_uri(encode_picture(picture, ".jpg"), "jpeg")


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(str(column))}</th>" for column in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(format_value(v))}</td>" for v in row.values()) + "</tr>" for row in rows
    )
    return f"<details open><summary>{escape(title)}</summary><table><tr>{head}</tr>{body}</table></details>"


def format_value(value: Any) -> str:
    """Format a value for a table: floats with three significant digits or as integers, missing values as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _scale() -> str:
    return ",".join(f"rgb({r},{g},{b})" for r, g, b in colormap_table("jet")[::32].tolist())


_STYLE = (
    "<style>"
    ".gk{font-size:13px;line-height:1.35}"
    ".gk-head{display:flex;flex-wrap:wrap;gap:.4rem 1.5rem;align-items:center;margin-bottom:.6rem}"
    ".gk-head label{display:inline-flex;gap:.5rem;align-items:center}"
    ".gk-scale i{display:inline-block;width:90px;height:10px;border-radius:2px;vertical-align:middle;"
    f"background:linear-gradient(90deg,{_scale()})}}"
    ".gk section{margin:0 0 1rem}.gk h4{margin:.3rem 0;font-size:13px;font-weight:600}"
    ".gk-cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:10px;max-width:1400px}"
    ".gk figure{margin:0;min-width:0}"
    ".gk-stack{background:var(--gk-picture) 0 0/100% 100%;aspect-ratio:var(--gk-ratio)}"
    ".gk-stack,.gk-stack img{border-radius:4px}"
    ".gk-stack img{width:100%;height:100%;margin:0;display:block;opacity:var(--gk-opacity)}"
    ".gk-stack:hover img{opacity:0}"
    ".gk figcaption{margin-top:3px;overflow-wrap:anywhere}.gk-quiet{opacity:.65;font-weight:normal}"
    ".gk table{border-collapse:collapse;margin:.4rem 0}"
    ".gk th,.gk td{padding:2px 10px;text-align:right;border-bottom:1px solid rgba(128,128,128,.3)}"
    ".gk th:first-child,.gk td:first-child{text-align:left}.gk summary{cursor:pointer}"
    "</style>"
)
