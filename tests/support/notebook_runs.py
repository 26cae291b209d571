"""Notebooks, run in this process: a kernel of its own would spend seconds on imports alone."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import nbformat


@dataclass(frozen=True)
class CellRun:
    """A code cell, what it printed, and what it showed: a text, or nothing but the fact ("picture or table")."""

    source: str
    printed: str
    shown: str | None


SOMETHING = "picture or table"
_ALIKE = 0.6


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def stored_runs(path: Path) -> list[CellRun]:
    """What the cells printed and showed when the outputs were stored."""
    found = []
    for cell in code_cells(path):
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        data = [output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result")]
        texts = [one["text/plain"] for one in data if "text/plain" in one]
        found.append(CellRun(cell.source, printed, texts[-1] if texts else SOMETHING if data else None))
    return found


def run(path: Path) -> Iterator[CellRun]:
    """Run the code cells one after the other, as a notebook does; an error in a cell is an error here."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path), 1):
        tree = ast.parse(cell.source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        value, place = None, f"<{path.stem}, cell {number}>"
        linecache.cache[place] = len(cell.source), None, cell.source.splitlines(True), place  # lines for tracebacks
        with contextlib.redirect_stdout(io.StringIO()) as printed, _figures() as figures:
            exec(compile(tree, place, "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), place, "eval"), names)
        shown = _shown(value)
        yield CellRun(cell.source, printed.getvalue(), SOMETHING if figures and shown is None else shown)


def is_alike(text: str | None, stored: str | None) -> bool:
    """Whether two texts have most of their words in common, in the same order.

    Numbers count as equal, and some words may differ: trainings end a little otherwise on other machines.
    """
    if text is None or stored is None:
        return text is stored
    words = [re.sub(r"[-+−±]?\d[\d.,]*(e[-+]?\d+)?", "#", one).split() for one in (text, stored)]
    return SequenceMatcher(None, *words, autojunk=False).ratio() >= _ALIKE


def _shown(value: Any) -> str | None:
    """The text of a value, unless it has a picture or a table, which are made as in a notebook."""
    if value is None:
        return None
    from IPython.core.formatters import DisplayFormatter
    from matplotlib.figure import Figure

    if isinstance(value, Figure):
        value.canvas.draw()
        return SOMETHING
    rich = ("_repr_html_", "_repr_png_")
    if made := [getattr(value, name)() for name in rich if hasattr(type(value), name)]:
        assert any(made)
        return SOMETHING
    data, _ = DisplayFormatter().format(value)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", data["text/plain"])


@contextlib.contextmanager
def _figures() -> Iterator[list[int]]:
    """The figures that are open at the end, which a notebook shows and closes."""
    found: list[int] = []
    yield found
    if "matplotlib.pyplot" in sys.modules:
        from matplotlib import pyplot

        found += pyplot.get_fignums()
        for number in found:
            pyplot.figure(number).canvas.draw()
        pyplot.close("all")
