"""Check that the rows of a shard are valid, because an intact file may still have been edited."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ALWAYS = ("path", "method", "status")


def problem_of(table: pa.Table) -> str | None:
    """Return the fault of the first invalid row, judged by the columns of the table; None = no fault."""
    for name in _ALWAYS:
        if name in table.column_names and table[name].null_count:
            return f"a row has no {name}"
    names = {*table.column_names}
    if not table.num_rows or "status" not in names:
        return None
    if not pc.all(pc.is_in(table["status"], pa.array(["ok", "error"]))).as_py():
        return "a row has a status other than ok and error"
    explained = table.filter(pc.equal(table["status"], "ok"))
    for needed, holds, said in _CHECKS:
        if names.issuperset(needed) and explained.num_rows:
            wrong = np.flatnonzero(~holds(explained))
            if wrong.size:
                row = explained.slice(int(wrong[0]), 1)
                whose = f" of {row['path'][0].as_py()!r}" if "path" in names else ""
                shown = ", ".join(f"{name} {_shown(row[name][0].as_py())}" for name in needed)
                return f"the row{whose} has {said}: {shown}"
    return None


def _shown(value: object) -> str:
    return f"of {len(value)} bytes" if isinstance(value, bytes) else repr(value)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    found: np.ndarray = pc.fill_null(table[name], -1).to_numpy().astype(np.int64)
    return found


def _heatmaps_fit(table: pa.Table) -> np.ndarray:
    height, width = _numbers(table, "height"), _numbers(table, "width")
    length = pc.fill_null(pc.binary_length(table["heatmap"]), -1).to_numpy()
    found: np.ndarray = (height > 0) & (width > 0) & (length == 2 * height * width)
    return found


def _boxes_are_boxes(table: pa.Table) -> np.ndarray:
    given = pc.is_valid(table["box"]).to_numpy()
    corners = np.full((table.num_rows, 4), np.nan)
    corners[given] = np.array(table["box"].drop_null().to_pylist(), float).reshape(-1, 4)  # null corners become NaN
    x0, y0, x1, y1 = corners.T
    found: np.ndarray = np.isfinite(corners).all(1) & (x0 < x1) & (y0 < y1)
    return found


def _ranks_count(table: pa.Table) -> np.ndarray:
    found: np.ndarray = pc.fill_null(table["rank"], 0).to_numpy() >= 0
    return found


def _best_are_there(table: pa.Table) -> np.ndarray:
    scores = pc.fill_null(pc.list_value_length(table["top_scores"]), 0).to_numpy()
    targets = pc.fill_null(pc.list_value_length(table["top_targets"]), 0).to_numpy()
    unknown = pc.is_null(table["predicted"]).to_numpy()
    found: np.ndarray = (scores == targets) & (unknown | (scores > 0))
    return found


_CHECKS: tuple[tuple[tuple[str, ...], Callable[[pa.Table], np.ndarray], str], ...] = (
    (("heatmap", "height", "width"), _heatmaps_fit, "a heatmap whose bytes do not match its size in float16"),
    (("box",), _boxes_are_boxes, "no box (x0, y0, x1, y1)"),
    (("rank",), _ranks_count, "a rank below 0"),
    (("predicted", "top_targets", "top_scores"), _best_are_there, "no best classes with one score each"),
)
"""Conditions on explained rows: the columns, the check, and the fault for messages."""
