"""Convert the stored results of a run to the records from which its pages are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.ground_truth.scoring import Column, Found
from benchmarks.ground_truth.table import Cells
from benchmarks.ground_truth.uncertainty import Cell, Difference


def cells(results: Mapping[str, Any]) -> Cells:
    """Return mean and interval of every row of every column; None becomes NaN."""
    undefined = {"mean": math.nan, "low": math.nan, "high": math.nan}
    return {
        name: {row: Cell(**undefined | _numbers(cell)) for row, cell in column["scores"].items()}
        for name, column in results["columns"].items()
    }


def columns(results: Mapping[str, Any]) -> dict[str, Column]:
    """Return the columns without scores, because only the means of scores are stored."""
    return {
        name: Column({}, column["skipped"], column["notes"], [_left_out(one) for one in column["left out"]])
        for name, column in results["columns"].items()
    }


def _left_out(record: Mapping[str, Any]) -> Found:
    return Found(notes={"accuracy": record["accuracy"]})


def pairs(results: Mapping[str, Any]) -> list[Difference]:
    """Return the pairs that were tested."""
    return [Difference(**_numbers(pair)) for pair in results["pairs"]]


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in record.items()}
