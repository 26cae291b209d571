"""Outputs as they are stored: small pictures, plain tables, nothing that another run or machine would change."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

from notebooks.kernel import WIDEST, encoded

ROOT = Path(__file__).parents[1]
KEY = "gradcam_kit"
"""Of the metadata that `tidy` leaves in a notebook: {"code": hash of the code that made the outputs}."""

PREPARATION = "from notebooks.kernel import show_comparisons_as_pictures\nshow_comparisons_as_pictures()"
"""Runs in the kernel before the first cell, and is not stored."""

_QUALITIES, _COLORS, _LARGE = (80, 70, 60, 50), 128, 75_000


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
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    if "image/jpeg" not in data:  # figures of matplotlib come as PNG alone
        plot = encoded(image.quantize(_COLORS, dither=Image.Dither.NONE), "PNG", optimize=True)
        if len(plot) < _LARGE:
            return {"image/png": base64.b64encode(plot).decode()}
    for quality in _QUALITIES:  # noise takes many bytes
        photo = encoded(image, "JPEG", quality=quality, optimize=True)
        if len(photo) < _LARGE:
            break
    return {"image/jpeg": base64.b64encode(photo).decode()}
