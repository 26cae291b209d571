"""What counts in the table of limits: each training once, the first loss once for each seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.results import Row
from benchmarks.thresholds import command


def measured(healthy: str, steps: int, seed: int) -> Iterator[tuple[str, float, str]]:
    yield "first loss", 0.01 * (seed + 1), ""
    yield "dead_warn", 0.2 if steps == command.FRESH else 0.6, "relu"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, Row]:
    monkeypatch.setattr(command, "MODELS", {"one": "a model", "two": "a model"})
    monkeypatch.setattr(command, "measure", measured)
    return {str(row.case["threshold"]): row for row in command.rows(steps=9, seeds=3)}


def test_the_first_loss_counts_once_for_each_seed(rows: dict[str, Row]) -> None:
    assert rows["first loss"].figures["values"].median == 2 * 3
    assert rows["first loss"].note.endswith("worst: two")
    assert rows["dead_warn"].figures["values"].median == 2 * 2 * 3
    assert rows["dead_warn"].note.endswith("worst: two after 9 steps, relu")


def test_both_limits_of_a_number_are_compared_with_it(rows: dict[str, Row]) -> None:
    shares = {name: rows[name].figures["beyond"].median for name in ("dead_warn", "dead_bad")}
    assert shares == {"dead_warn": 1, "dead_bad": 0.5}
    assert rows["gradient_bad"].skipped
