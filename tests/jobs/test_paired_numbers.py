"""The numbers from which a run reports differences: those of its rows, in few bytes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gradcam_kit.jobs.storage.rows import Row
from gradcam_kit.jobs.work.paired_numbers import PairedNumbers

METRICS = [f"metric-{i}" for i in range(4)]
METHODS = [f"method-{i}" for i in range(7)]


def rows_of(shard: int, pictures: int) -> list[Row]:
    """Return rows of new pictures, by every method, for two targets each."""
    rng = np.random.default_rng(shard)
    rows: list[Row] = []
    for picture in range(pictures):
        for place, method in enumerate(METHODS):
            for target in range(2):
                row: Row = {"path": f"folder/of/{shard}/{picture}.jpg", "method": method, "target": target}
                for metric in METRICS:
                    name = metric.replace("-", "_")
                    row |= {name: rng.normal(place), f"{name}_status": "ok"}
                rows.append(row)
    return rows


def test_a_number_takes_four_bytes() -> None:
    kept = PairedNumbers(dict.fromkeys(METRICS, "higher"))
    tracemalloc.start()
    for shard in range(4):
        kept.add(rows_of(shard, 250))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    numbers = len(METHODS) * len(METRICS)
    assert 4 * numbers <= used / 1000 < 8 * numbers, "bytes of a picture"


def test_a_picture_without_a_number_keeps_its_place() -> None:
    kept, rows = PairedNumbers({"metric-0": "higher", "metric-1": ""}), [rows_of(shard, 8) for shard in range(3)]
    for row in rows[1]:  # in one shard a method has no number at all, in another a picture has none by it
        if row["method"] == "method-2":
            row["metric_0_status"] = "error"
    for row in rows[2]:
        if row["path"].endswith("/3.jpg") and row["method"] == "method-1":
            row["metric_0_status"] = "degenerate_map"
    for own in rows:
        kept.add(own)
    lines = [line for line in kept.lines() if line.startswith("metric-0")]
    for first, second, left_out in ((0, 1, 1), (0, 2, 8), (1, 2, 9)):
        [line] = (line for line in lines if line.startswith(f"metric-0: method-{first} - method-{second} = "))
        values = []
        for row in (row for own in rows for row in own):
            others = [one for one in kept_rows(rows, row["path"]) if one["target"] == row["target"]]
            by = {one["method"]: one["metric_0"] for one in others if one["metric_0_status"] == "ok"}
            if row["method"] == "method-0" and {f"method-{first}", f"method-{second}"} <= set(by):
                values.append(by[f"method-{first}"] - by[f"method-{second}"])
        assert len(values) == 2 * (24 - left_out)
        assert line.startswith(f"metric-0: method-{first} - method-{second} = {np.mean(values):.3g} [")
        assert line.endswith(f", {24 - left_out} images")


def kept_rows(rows: list[list[Row]], path: str) -> list[Row]:
    return [row for own in rows for row in own if row["path"] == path]


def test_only_metrics_with_a_direction_rank() -> None:
    def agreement(better: str) -> list[str]:
        kept = PairedNumbers({"metric-0": "higher", "metric-1": "lower", "metric-2": better})
        kept.add(rows_of(0, 6))
        return [row["metric"] for row in kept.agreement()]

    assert agreement("") == ["metric-0", "metric-1"]
    assert agreement("lower") == ["metric-0", "metric-1", "metric-2"]
    kept = PairedNumbers({"metric-0": "higher", "metric-1": "lower"})
    kept.add(rows_of(0, 6))
    assert kept.agreement()[0]["metric-1"] == pytest.approx(-1, abs=0.5), "larger is worse by one of them"
    alone = PairedNumbers({"metric-0": "higher", "metric-1": ""})
    alone.add(rows_of(0, 6))
    assert alone.agreement() == []
