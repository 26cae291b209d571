"""Every sentence of the conclusions rests on the stored numbers, and fails when they stop supporting it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from benchmarks.ground_truth import command, conclusions
from benchmarks.ground_truth.stored import Stored, UnsupportedError
from benchmarks.report import between_markers
from benchmarks.results import RESULTS, ROOT

PAGE = ROOT / "docs" / "where-right.md"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "ground-truth.json").read_text())
    return found


def test_the_page_says_what_the_stored_numbers_say(results: dict[str, Any]) -> None:
    text = PAGE.read_text()
    assert between_markers(text, conclusions.text(results), *command._OF_CONCLUSIONS) == text


def test_what_is_trained_was_trained_five_times_or_more(results: dict[str, Any]) -> None:
    once = {"signs", "and", "or", *(name for name in results["columns"] if name.startswith(("demo", "photographs")))}
    assert once < set(results["columns"])
    for name, column in results["columns"].items():
        networks = {row["networks"] for row in column["scores"].values()}
        assert networks == {1} if name in once else min(networks) >= 5, name


@pytest.mark.parametrize("pair", conclusions.pairs(), ids=lambda pair: f"{pair.column}: {pair.better}, {pair.worse}")
def test_a_sentence_fails_when_its_pair_no_longer_supports_it(results: dict[str, Any], pair: Any) -> None:
    conclusions.text(results)
    changed = copy.deepcopy(results)
    [own] = [
        one
        for one in changed["pairs"]
        if (one["column"], one["better"], one["worse"]) == (pair.column, pair.better, pair.worse)
    ]
    own["p_holm"] = 0.5 if own["p_holm"] < 0.05 else 0.01
    with pytest.raises(UnsupportedError):
        conclusions.text(changed)


def test_a_difference_counts_only_if_empty_maps_do_not_turn_it_around() -> None:
    pair = {
        "column": "c", "better": "a", "worse": "b", "difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01, "n": 9,
        "low_with_empty": 0.05,
    }  # fmt: skip
    assert Stored({"pairs": [pair]}).better("c", "a", "b") == "0.20 [0.10, 0.30]"
    for changed in ({"low_with_empty": -0.1}, {"low": -0.1}, {"n": 0}, {"p_holm": 0.06}):
        with pytest.raises(UnsupportedError):
            Stored({"pairs": [{**pair, **changed}]}).better("c", "a", "b")
    with pytest.raises(UnsupportedError, match="were not compared"):
        Stored({"pairs": [pair]}).better("c", "b", "a")
    with pytest.raises(UnsupportedError, match="was not measured"):
        Stored({"columns": {}}).mean("c", "a")


@pytest.mark.parametrize("name", [one.__name__ for one in conclusions.CONCLUSIONS])
def test_a_sentence_says_how_sure_it_is(results: dict[str, Any], name: str) -> None:
    """With an interval of a mean or of a difference."""
    said = getattr(conclusions, name)(Stored(results))
    assert "[" in said.replace("](", "")
