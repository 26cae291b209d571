"""Curves of trainings that fail, and of one that does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from planted import said

from gradcam_kit.diagnostics.checks.curves import check_curves
from gradcam_kit.errors import InputError

N = 40
FALLING = [2.2 * 0.9**i + 0.1 for i in range(N)]
BETTER = [2.2 * 0.91**i + 0.2 for i in range(N)]


def test_a_training_that_works_is_silent() -> None:
    assert check_curves({"train_loss": FALLING, "validation_loss": BETTER}) == []
    assert check_curves({"loss": FALLING, "val_loss": BETTER, "accuracy": [0.1] * N}) == []
    noisy = [value * (1 + 0.05 * (-1) ** i) for i, value in enumerate(FALLING)]
    assert check_curves({"train_loss": noisy}) == []


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        ([2.3, 2.2, math.nan, math.nan], None, [("bad", "nonfinite")]),
        ([2.3, 2.2, math.inf], None, [("bad", "nonfinite")]),
        ([2.3, 2.0, 5.0, 20.0, 80.0, 300.0], None, [("bad", "diverged")]),
        ([*FALLING, 9.0, 40.0, 200.0] + [300.0] * 20, None, [("bad", "diverged")]),
        ([2.302, 2.301, 2.303] * 8, None, [("note", "plateau")]),
        ([2.3, 1.7, 2.2, 1.8, 2.4, 1.75, 2.1, 1.9, 2.35, 1.7, 2.2, 1.8], None, [("note", "update")]),
        (FALLING, [0.5 + 0.02 * abs(i - 12) for i in range(N)], [("warn", "overfit")]),
        (FALLING, [0.5 * value for value in FALLING], [("warn", "leak")]),
    ],
)
def test_each_failure_has_its_name(
    train: list[float], validation: list[float] | None, expected: list[tuple[str, str]]
) -> None:
    history = {"train_loss": train} | ({} if validation is None else {"validation_loss": validation})
    found = [pair for pair in said(check_curves(history)) if pair[0] != "note" or pair in expected]
    assert found == expected


def test_the_point_is_named() -> None:
    [finding] = check_curves({"train_loss": [2.3, 2.2, math.nan]})
    assert "point 3 of 3" in finding.message
    [finding] = check_curves({"train_loss": FALLING, "val_loss": [0.5 + 0.02 * abs(i - 12) for i in range(N)]})
    assert (finding.value, finding.threshold) == (27, 8)


def test_short_curves_and_minima_that_are_recent_are_not_judged() -> None:
    assert check_curves({"train_loss": [2.3]}) == []
    assert check_curves({"train_loss": [2.3, 2.3, 2.3]}) == []
    late = [0.5 + 0.02 * abs(i - N + 4) for i in range(N)]
    assert said(check_curves({"train_loss": FALLING, "validation_loss": late})) == []


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ({"train_los": [1.0]}, "'train_los'; expected train_loss .* did you mean 'train_loss'"),
        ({}, "has nothing; expected train_loss"),
        ({"train_loss": []}, "expected train_loss"),
        ([1.0, 2.0], "the history is a list; expected a mapping"),
        ({"train_loss": ["a"]}, "holds values that are not numbers"),
    ],
)
def test_histories_that_cannot_be_read(history: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_curves(history)
