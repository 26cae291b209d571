"""Every sentence of the conclusions rests on the stored numbers, and fails when they stop supporting it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.ground_truth import command, conclusions
from benchmarks.ground_truth.scoring import SURE, is_deletion
from benchmarks.ground_truth.stored import Asked, Stored, UnsupportedError
from benchmarks.ground_truth.tokens import OF_EMPTY
from benchmarks.ground_truth.uncertainty import Pair
from benchmarks.report import between_markers
from benchmarks.results import RESULTS, ROOT
from gradcam_kit.significance import holm

PAGE = ROOT / "docs" / "where-right.md"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "ground-truth.json").read_text())
    return found


def test_the_page_says_what_the_stored_numbers_say(results: dict[str, Any]) -> None:
    text = PAGE.read_text()
    assert between_markers(text, conclusions.text(results), *command._OF_CONCLUSIONS) == text


def test_tables_have_the_stored_numbers(results: dict[str, Any]) -> None:
    text = PAGE.read_text()
    assert between_markers(text, command.tables_of(results), *command._MARKERS) == text
    assert command.page_of(results) == (ROOT / "docs" / "ground-truth.md").read_text()


def test_what_is_trained_was_trained_five_times_or_more(results: dict[str, Any]) -> None:
    once = {"signs", "and", "or", *(name for name in results["columns"] if name.startswith(("demo", "photographs")))}
    assert once < set(results["columns"])
    for name, column in results["columns"].items():
        networks = {row["networks"] + len(column["left out"]) for row in column["scores"].values()}
        assert networks == {1} if name in once else min(networks) >= 5, name


def test_networks_that_are_often_wrong_do_not_count(results: dict[str, Any]) -> None:
    left_out = {name: [one["accuracy"] for one in column["left out"]] for name, column in results["columns"].items()}
    assert any(left_out.values())
    for name, column in results["columns"].items():
        assert all(accuracy >= SURE for accuracy in column["accuracy"]), name
        assert all(accuracy < SURE for accuracy in left_out[name]), name
        rows = column["scores"].values()
        assert all(row["networks"] == len(column["accuracy"]) for row in rows) or not column["accuracy"], name


def test_stored_pairs_are_those_that_sentences_ask_for_and_corrected_for_all_of_them(results: dict[str, Any]) -> None:
    stored = [Pair(one["column"], one["better"], one["worse"], one["margin"]) for one in results["pairs"]]
    assert stored == list(conclusions.pairs())
    assert [one["p_holm"] for one in results["pairs"]] == pytest.approx(holm([one["p"] for one in results["pairs"]]))
    for one in results["pairs"]:
        by_network = results["columns"][one["column"]]["by network"]
        if one["networks"] > 1 and one["n"] == results["columns"][one["column"]]["scores"][one["better"]]["n"]:
            means = np.subtract(by_network[one["better"]], by_network[one["worse"]])
            means = (-means if is_deletion(one["column"]) else means) + one["margin"]
            same = results["columns"][one["column"]]["scores"][one["worse"]]
            if same["n"] == one["n"] and not same["empty_maps"]:
                assert one["p"] == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=1e-3, abs=1e-12), one


def pair_of(results: dict[str, Any], pair: Pair) -> dict[str, Any]:
    [own] = [
        one
        for one in results["pairs"]
        if (one["column"], one["better"], one["worse"], one["margin"])
        == (pair.column, pair.better, pair.worse, pair.margin)
    ]
    found: dict[str, Any] = own
    return found


def with_verdict() -> set[Pair]:
    """Pairs of sentences that say one thing or the other, whatever the test shows."""
    found: set[Pair] = set()

    class Listening(Asked):
        def verdict(self, column: str, better: str, worse: str, margin: float = 0.0) -> tuple[bool, str]:
            found.add(Pair(column, better, worse, margin))
            return True, ""

    for conclusion in conclusions.CONCLUSIONS:
        conclusion(Listening())
    return found


@pytest.mark.parametrize("pair", conclusions.pairs(), ids=lambda pair: f"{pair.column}: {pair.better}, {pair.worse}")
def test_a_sentence_fails_when_its_pair_no_longer_supports_it(results: dict[str, Any], pair: Pair) -> None:
    said = conclusions.text(results)
    shown = pair_of(results, pair)["p_holm"] < 0.05
    for change in ({"p_holm": 0.5 if shown else 0.01}, *([{"agreeing": 1}, {"low": -0.1}] if shown else ())):
        changed = copy.deepcopy(results)
        own = pair_of(changed, pair)
        if "agreeing" in change and own["networks"] == 1:
            continue  # of hand-wired networks, the pictures need not agree
        own.update(change)
        if pair in with_verdict() and "p_holm" in change:
            own.update({"low": 0.1, "low_with_empty": 0.1, "agreeing": own["observations"]})
            assert conclusions.text(changed) != said
            continue
        with pytest.raises(UnsupportedError):
            conclusions.text(changed)


def test_a_sentence_of_either_verdict_says_which(results: dict[str, Any]) -> None:
    said = {}
    for shown in (True, False):
        changed = copy.deepcopy(results)
        for pair in with_verdict():
            pair_of(changed, pair).update(
                {"p_holm": 0.01 if shown else 0.5, "low": 0.1, "low_with_empty": 0.1, "agreeing": 9, "observations": 9}
            )
        said[shown] = " ".join(conclusions.text(changed).split())
    for words in (
        "one stage before the last, this is not shown (",
        "a larger growth with `GradCAM` is not shown (",
        "With a frame that is to be ignored, this is not shown (",
        "more trainings are needed to settle it",
        "exceeds the mask by 0.05 in networks of this kind is not excluded.",
    ):
        assert words in said[False]
        assert words not in said[True]
    for words in (
        " less than with `GradCAM`.",
        "With a frame that is to be ignored, it is better by ",
        "exceeds the mask by 0.05 in networks of this kind is excluded.",
    ):
        assert words in said[True]
        assert words not in said[False]


def score(column: str, row: str, value: float) -> Callable[[dict[str, Any]], None]:
    """Change the mean of a row."""

    def change(results: dict[str, Any]) -> None:
        results["columns"][column]["scores"][row]["mean"] = value

    return change


def within(column: str, *path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Change something of a column."""

    def change(results: dict[str, Any]) -> None:
        own = results["columns"][column]
        for name in path[:-1]:
            own = own[name]
        own[path[-1]] = value

    return change


def noted(column: str, value: float, *path: str) -> Callable[[dict[str, Any]], None]:
    """Change what is noted of every network."""

    def change(results: dict[str, Any]) -> None:
        for own in results["columns"][column]["notes"]:
            for name in path[:-1]:
                own = own[name]
            own[path[-1]] = value

    return change


def one_draw(column: str) -> Callable[[dict[str, Any]], None]:
    """Let all draws of random channel weights be the same."""

    def change(results: dict[str, Any]) -> None:
        for own in results["columns"][column]["notes"]:
            own["draws"]["random-cam"] = [0.1] * 5

    return change


WITH_ONE = ("small", "medium", "large", "two objects", "GridPG", "demo", "demo, GridPG")
BROKEN = {
    **{
        f"{column}: grad-cam and {row} differ": score(column, row, 0.93)
        for column in WITH_ONE
        for row in ("hires-cam", "xgrad-cam", "cam")
    },
    **{f"{column}: grad-cam and eigen-cam differ": score(column, "eigen-cam", 0.93) for column in WITH_ONE[:3]},
    "two objects: grad-cam does not show": lambda results: [
        score("two objects", row, 0.85)(results) for row in ("grad-cam", "hires-cam", "xgrad-cam", "cam")
    ],
    "blind half: hires-cam shows": score("blind half", "hires-cam", 0.95),
    "two objects: eigen-cam depends": score("two objects", "eigen-cam", 0.51),
    "GridPG: eigen-cam depends": score("GridPG", "eigen-cam", 0.26),
    **{
        f"or: not all maps of {re.escape(row)} are empty": within("or", "scores", row, "n", value=1)
        for row in ("grad-cam", "hires-cam", "layer-cam", "grad-cam++")
    },
    **{f"or: {row} does not find": score("or", row, 0.05) for row in ("integrated-grad-cam", "recipro-cam")},
    "grad-cam is not less on small": within("small", "by network", "grad-cam", 3, value=0.4),
    **{
        f"{column}: most of grad-cam lies on": lambda results, column=column: [
            score(column, row, 0.6)(results) for row in ("grad-cam", "hires-cam", "xgrad-cam", "cam", "eigen-cam")
        ]
        for column in ("small", "large")
    },
    "shortcut: the effect does not grow": noted("shortcut", 9.0, "correlation 0.0", conclusions._EFFECT),
    "shortcut: the share does not grow": noted("shortcut", 0.9, "correlation 0.0", conclusions._SHARE, "grad-cam"),
    **{
        f"shortcut: the share of {row} does not grow": within("shortcut", "scores", row, "low", value=-0.1)
        for row in ("grad-cam", "random-cam")
    },
    "transformer: balanced-cam is below": score("transformer", "balanced-cam", 0.2),
    "transformer, two: balanced-cam is below": score("transformer, two", "balanced-cam", 0.1),
    "balanced-cam has .* on the other square": noted(
        "transformer, two", 0.5, "share of balanced-cam on the other square"
    ),
    "in one network, the deletion area of balanced-cam exceeds the mask's by": within(
        "transformer, mean, deletion", "by network", "balanced-cam", 1, value=0.9
    ),
    "in one network, the deletion area of hires-cam is .* smaller than that of balanced-cam": within(
        "transformer, deletion", "by network", "hires-cam", 0, value=0.01
    ),
    "an empty picture is not named with": noted("transformer, windows, deletion", 0.3, OF_EMPTY),
    "draws of random-cam differ by only 0.00": one_draw("transformer"),
    "draws of random-cam differ by only": one_draw("series, when"),
    "photographs: a map of the center": score("photographs, share", "center", 0.1),
    "photographs, share: grad-cam has no interval": within(
        "photographs, share", "scores", "grad-cam", "low", value=None
    ),
}  # fmt: skip
"""What a sentence says -> how to make it wrong."""


@pytest.mark.parametrize("said", BROKEN)
def test_a_sentence_fails_when_what_it_says_is_wrong(results: dict[str, Any], said: str) -> None:
    changed = copy.deepcopy(results)
    BROKEN[said](changed)
    with pytest.raises(UnsupportedError, match=said):
        conclusions.text(changed)


@pytest.mark.parametrize("row", ["eigen-cam", "integrated-grad-cam"])
def test_a_sentence_fails_when_all_maps_of_a_row_are_empty(results: dict[str, Any], row: str) -> None:
    changed = copy.deepcopy(results)
    within("GridPG" if row == "eigen-cam" else "or", "scores", row, "n", value=0)(changed)
    with pytest.raises(UnsupportedError, match=f"all maps of {row} are empty"):
        conclusions.text(changed)


def test_whatever_is_required_is_broken_above(results: dict[str, Any]) -> None:
    said: list[str] = []

    class Listening(Stored):
        def require(self, condition: bool, about: str) -> None:
            said.append(about)

    for conclusion in conclusions.CONCLUSIONS:
        conclusion(Listening(results))
    no_interval = [about for about in said if about.endswith("has no interval")]
    assert len(said) - len(no_interval) >= 40
    patterns = [one.replace("differ by 0.00", "differ by .*") for one in BROKEN]
    missed = [about for about in said if about not in no_interval and not any(re.match(one, about) for one in patterns)]
    assert not missed


ACCURATE = sorted({
    *(pair.column for pair in conclusions.pairs()), "small", "medium", "large", "demo", "demo, GridPG"
} - {"blind half", "and", "or", "photographs, share"})  # fmt: skip


@pytest.mark.parametrize("column", ACCURATE)
def test_a_sentence_fails_when_networks_do_not_name_what_they_see(results: dict[str, Any], column: str) -> None:
    changed = copy.deepcopy(results)
    changed["columns"][column]["accuracy"][0] = 0.1
    with pytest.raises(UnsupportedError, match=f"{column}: networks do not name"):
        conclusions.text(changed)


PAIR = {
    "column": "c", "better": "a", "worse": "b", "difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01, "n": 9,
    "low_with_empty": 0.05, "networks": 5, "agreeing": 5, "observations": 5, "margin": 0.0,
}  # fmt: skip


def stored(**changed: Any) -> Stored:
    return Stored({"columns": {"c": {"accuracy": [1.0]}}, "pairs": [{**PAIR, **changed}]})


def test_a_difference_counts_only_if_empty_maps_do_not_turn_it_around_and_networks_agree() -> None:
    assert stored().better("c", "a", "b") == "0.20 [0.10, 0.30]"
    for changed in ({"low_with_empty": -0.1}, {"low": -0.1}, {"n": 0}, {"p_holm": 0.06}, {"agreeing": 2}):
        with pytest.raises(UnsupportedError):
            stored(**changed).better("c", "a", "b")
    assert stored(agreeing=4).better("c", "a", "b") == "0.20 [0.10, 0.30] (4 of 5 networks)"
    with pytest.raises(UnsupportedError, match="were not compared"):
        stored().better("c", "b", "a")
    with pytest.raises(UnsupportedError, match="was not measured"):
        Stored({"columns": {}}).mean("c", "a")


def test_a_margin_is_what_a_row_may_be_worse_by() -> None:
    worse = {"difference": -0.01, "low": -0.04, "low_with_empty": -0.04, "margin": 0.05}
    assert stored(**worse).verdict("c", "a", "b", 0.05) == (True, "-0.01 [-0.04, 0.30]")
    assert stored(**worse, p_holm=0.2).verdict("c", "a", "b", 0.05)[0] is False
    with pytest.raises(UnsupportedError, match="do differ"):
        stored(**{**worse, "low": -0.06}).verdict("c", "a", "b", 0.05)
    with pytest.raises(UnsupportedError, match="were not compared"):
        stored(**worse).verdict("c", "a", "b")


def test_what_is_not_shown_is_said_with_p_and_unclear_only_with_0_inside() -> None:
    outside = stored(p_holm=0.3)
    assert outside.not_shown("c", "a", "b") == "0.20 [0.10, 0.30], p = 0.3 after Holm"
    with pytest.raises(UnsupportedError, match="does not contain 0"):
        outside.unclear("c", "a", "b")
    inside = stored(p_holm=0.3, low=-0.1)
    assert inside.unclear("c", "a", "b") == "0.20 [-0.10, 0.30], p = 0.3 after Holm"
    with pytest.raises(UnsupportedError, match="do differ"):
        stored(low=-0.1).unclear("c", "a", "b")
    assert stored(p_holm=0.3).in_all("c", "a", "b") == "0.20"
    for changed in ({"p_holm": 0.01}, {"agreeing": 4, "p_holm": 0.3}):
        with pytest.raises(UnsupportedError):
            stored(**changed).in_all("c", "a", "b")


@pytest.mark.parametrize("name", [one.__name__ for one in conclusions.CONCLUSIONS])
def test_a_sentence_says_how_sure_it_is(results: dict[str, Any], name: str) -> None:
    """With an interval of a mean or of a difference."""
    said = getattr(conclusions, name)(Stored(results))
    assert "[" in said.replace("](", "")
