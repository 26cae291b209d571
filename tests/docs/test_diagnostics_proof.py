"""The page that shows how far the diagnostics can be trusted says what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.capabilities import CAPABILITIES
from benchmarks.diagnostics import TOOLS
from benchmarks.proof import ANCHORS, PAGE, RESULTS, filled
from benchmarks.results import load
from benchmarks.thresholds.command import LIMITS, limit_of
from gradcam_kit import diagnostics
from gradcam_kit.diagnostics.history import FIELDS, ROWS
from gradcam_kit.diagnostics.maths.histogram import BINS, COARSE

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
    assert len(kept) == 2
    history = ROWS * (4 * len(FIELDS) + 2 * COARSE) / 1024
    histograms = 2 * 8 * BINS / 1024
    assert history <= 64
    assert kept[0] < kept[1] <= history + histograms + 12


def test_the_page_about_trainings_says_what_was_measured() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "diagnostics.md").read_text())
    said = re.search(
        r"a training step took ([\d.]+) times as long with all layers observed, ([\d.]+) times with `every=10`, and "
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
