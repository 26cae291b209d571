"""The page that shows how far the diagnostics can be trusted says what was measured."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmarks.anchors import ANCHORS
from benchmarks.capabilities import CAPABILITIES
from benchmarks.diagnostics import IN_TURN, TOOLS
from benchmarks.proof import HISTOGRAMS_KIB, HISTORY_KIB, MEMORY_GOAL, PAGE, RESULTS, cost_table, filled
from benchmarks.results import Figure, Results, load
from benchmarks.thresholds.command import LEFT_OUT, LIMITS, limit_of
from gradcam_kit import diagnostics

ROOT = Path(__file__).parents[2]
COST = load(RESULTS / "diagnostics-cpu.json")


def ratio(tool: str) -> float:
    [row] = COST.where(work=tool)
    return row.figures["ratio"].median


def test_the_tables_are_those_of_the_stored_results() -> None:
    assert filled(PAGE.read_text()) == PAGE.read_text()


def test_a_table_that_was_changed_by_hand_is_noticed() -> None:
    text = PAGE.read_text()
    assert filled(text.replace("| a ReLU layer is dead", "| a ReLU layer is alive", 1)) == text


def test_every_tool_was_measured() -> None:
    measured = {row.case["work"] for row in COST.rows if "ratio" in row.figures}
    assert measured == set(TOOLS)
    assert COST.environment["rounds"] >= 9


def test_memory_has_an_end() -> None:
    kept = [row.figures["kib_per_layer"].median for row in COST.rows if "kib_per_layer" in row.figures]
    assert len(kept) == 3
    assert HISTORY_KIB + HISTOGRAMS_KIB < kept[0] < MEMORY_GOAL
    assert all(one <= MEMORY_GOAL for one in kept)
    assert kept[2] == pytest.approx(kept[1], rel=0.03)


def with_ratio(tool: str, ratio: float, **environment: str) -> Results:
    rows = [
        replace(row, figures={**row.figures, "ratio": Figure(ratio, ratio, ratio)}) if row.case["work"] == tool else row
        for row in COST.rows
    ]
    return replace(COST, rows=rows, environment={**COST.environment, **environment})


def test_goals_that_are_missed_are_named(tmp_path: Path) -> None:
    assert {name: tool.goal for name, tool in TOOLS.items() if tool.goal} == {
        "empty hooks, all leaves": 1.02,
        "ModelDiagnostics, all leaves": 1.25,
        "ModelDiagnostics, conv + linear": 1.12,
        "ModelDiagnostics, all leaves, every=10": 1.05,
        "find_nonfinite": 1.10,
    }
    for ratio, is_missed in ((1.24, False), (1.26, True)):
        with_ratio("ModelDiagnostics, all leaves", ratio).save(tmp_path / "diagnostics-cpu.json")
        last = cost_table(tmp_path).splitlines()[-1]
        assert ("ModelDiagnostics, all leaves (1.26 instead of 1.25)" in last) == is_missed


def test_whether_tools_met_the_same_load_is_said(tmp_path: Path) -> None:
    for order, said in (
        ("", "one after the other, so compare only"),
        (IN_TURN, "Each round measures all tools in turn"),
    ):
        with_ratio("find_nonfinite", 1.0, order=order).save(tmp_path / "diagnostics-cpu.json")
        assert said in cost_table(tmp_path)


def test_the_page_about_trainings_says_what_was_measured() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "diagnostics.md").read_text())
    said = re.search(
        r"a training step took ([\d.]+) times as long with all layers observed, ([\d.]+) times with `every=10`, "
        r"and "
        r"([\d.]+) times inside `find_nonfinite`. `wandb.watch` took ([\d.]+) times",
        text,
    )
    assert said
    tools = (
        "ModelDiagnostics, all leaves",
        "ModelDiagnostics, all leaves, every=10",
        "find_nonfinite",
        "wandb.watch, log=all",
    )
    assert [float(number) for number in said.groups()] == [pytest.approx(ratio(tool), abs=0.0051) for tool in tools]


def test_every_limit_is_in_the_table_or_left_out_with_a_reason() -> None:
    assert {*LIMITS, *LEFT_OUT} == {"first loss", *(field.name for field in fields(diagnostics.Thresholds))}
    assert not set(LIMITS) & set(LEFT_OUT)
    text = PAGE.read_text()
    assert all(f"`{name}`" in text for name in LEFT_OUT)


def test_limits_are_those_that_hold() -> None:
    stored = load(RESULTS / "thresholds-cpu.json")
    assert [row.case["threshold"] for row in stored.rows] == list(LIMITS)
    for row in stored.rows:
        if row.figures:
            assert row.figures["limit"].median == limit_of(str(row.case["threshold"]))


@pytest.mark.parametrize("own", ANCHORS, ids=lambda own: own.name)
def test_what_is_compared_exists_is_measured_and_tested(own) -> None:
    import gradcam_kit

    for name in own.call.split(", "):
        assert hasattr(diagnostics, name) or hasattr(gradcam_kit, name)
    assert any(name in (ROOT / own.test).read_text() for name in own.call.split(", "))
    works = {str(row.case["work"]) for row in load(RESULTS / "capabilities-cpu.json").rows if row.figures}
    assert own.work == "" or own.work in works


def test_every_capability_was_measured() -> None:
    stored = load(RESULTS / "capabilities-cpu.json")
    assert {row.case.get("capability") for row in stored.rows} == set(CAPABILITIES)
    assert not [row.skipped for row in stored.rows if row.skipped]
