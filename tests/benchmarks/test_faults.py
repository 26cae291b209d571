"""Every planted fault is found, the module that is named is the guilty one, and its healthy twin is silent."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.faults import FAULTS, Fault
from benchmarks.faults.command import STORED

ROWS = json.loads(STORED.read_text())["rows"]


def name(fault: Fault) -> str:
    return f"{fault.number}-{re.sub('[^a-z0-9]+', '-', fault.title.lower())[:40]}"


def masked(text: str) -> str:
    """A text without its numbers, in which machines may differ."""
    return re.sub(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "#", text)


def needed(fault: Fault) -> None:
    if fault.tool == "graph_attention":
        pytest.importorskip("torch_geometric")


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_the_guilty_module_is_named(fault: Fault) -> None:
    needed(fault)
    said = fault.said(planted=True)
    answer = fault.answer(said)
    assert answer is not None
    assert (answer.level, answer.kind, answer.layer) == (fault.level, fault.kind, fault.layer)
    assert answer.message
    assert answer.advice or answer.kind == "nonfinite"
    # Nothing else is called bad but what belongs to the same fault.
    assert {finding.layer for finding in said if finding.level == "bad"} <= {fault.layer}
    [stored] = [
        row for row in ROWS if (row["number"], row["planted"], row["tool"]) == (fault.number, fault.title, fault.tool)
    ]
    assert (stored["level"], stored["kind"], stored["layer"], stored["at"]) == (
        *(answer.level, answer.kind, answer.layer),
        fault.at,
    )
    assert masked(stored["said"]) == masked(answer.message)
    assert masked(stored["advice"]) == masked(answer.advice)


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_the_healthy_twin_is_silent(fault: Fault) -> None:
    needed(fault)
    assert [str(finding) for finding in fault.said(planted=False)] == []


def test_all_36_are_planted_and_stored() -> None:
    assert {fault.number for fault in FAULTS} == set(range(1, 37))
    assert len(ROWS) == len(FAULTS)
    assert all(row["twin"] == [] for row in ROWS)
